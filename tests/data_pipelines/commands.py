"""``segclip-shards`` in this process."""

from __future__ import annotations

import pytest

from segclip.data_pipelines.cli import main


def run(*arguments: object) -> int:
    """Its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code
