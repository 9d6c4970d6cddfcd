"""Command lines run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import pytest

__all__ = ["exit_code"]


def exit_code(main: Callable[[Sequence[str]], NoReturn], *words: object) -> int:
    """With which a command ends that is given these words."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code
