from __future__ import annotations

from pathlib import Path

import pytest

from segclip.data_pipelines.building.open_source import open_source


@pytest.mark.parametrize(
    ("sources", "captions", "message"),
    [
        (["DIR/{00..03}.tar"], None, r"00.tar does not exist: .*a range with gaps is written"),
        (["DIR/{00..03.tar"], None, "cannot be read: Unbalanced braces"),
        (["DIR"], None, "holds neither tars nor pictures"),
        (["DIR/none"], None, "does not exist"),
        (["DIR", "DIR"], None, "holds no tars"),
        (["DIR/x.tar", "DIR/x.tar"], None, "1 tars are named twice"),
        (["DIR", "DIR"], "t.csv", "of one folder of pictures, not of 2"),
        (["DIR"], "DIR/none.csv", "none.csv does not exist"),
        (["DIR/none"], "DIR/t.csv", "none does not exist"),
        (["pipe:cat x.tar"], None, "pipe: URLs run shell commands"),
        (["ftp://x/y.tar"], None, "scheme 'ftp'"),
    ],
)
def test_sources_that_are_not_there(
    tmp_path: Path, sources: list[str], captions: str | None, message: str
) -> None:
    if "x.tar" in sources[0]:
        (tmp_path / "x.tar").write_bytes(b"")
    paths = [each.replace("DIR", str(tmp_path)) for each in sources]
    table = None if captions is None else captions.replace("DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        open_source(paths, captions=table, per_shard=5)
