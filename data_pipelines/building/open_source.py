"""Where a shard set is built from: existing tars, a folder of pictures, pictures and a table of their captions."""

from __future__ import annotations

from collections.abc import Sequence

from segclip.data_pipelines.building.picture_source import open_folder, open_table
from segclip.data_pipelines.building.source import Source
from segclip.data_pipelines.building.tables import TableOptions
from segclip.data_pipelines.building.tar_source import expanded, open_tars, tars_in

__all__ = ["open_source"]


def open_source(
    sources: Sequence[str],
    *,
    captions: str | None = None,
    table: TableOptions | None = None,
    per_shard: int,
) -> Source:
    """The source that some arguments name.

    Args:
        sources: tars (``SRC/{00000..00331}.tar``), folders of tars, or one folder of pictures.
        captions: table of the captions of a folder of pictures; None reads each from the ``.txt`` beside its picture.
        table: how to read it; None takes the usual columns and splits.
        per_shard: samples wanted in each shard.

    Raises:
        ValueError: nothing there, or things that do not go together.
    """
    if captions is not None:
        if len(sources) != 1:
            raise ValueError(
                f"--captions names the captions of one folder of pictures, not of {len(sources)}"
            )
        return open_table(sources[0], captions, table or TableOptions(), per_shard)
    tars: list[str] = []
    for each in sources:
        if each.endswith(".tar"):
            tars += expanded(each)
        elif found := tars_in(each):
            tars += found
        elif len(sources) == 1:
            return open_folder(each, per_shard)
        else:
            raise ValueError(f"{each} holds no tars: give tars, folders of tars, or one folder of pictures")
    return open_tars(tars, per_shard)
