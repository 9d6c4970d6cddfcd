"""``segclip-shards`` in this process."""

from __future__ import annotations

from functools import partial

from segclip.data_pipelines.cli import main
from tests.exit_code import exit_code

__all__ = ["run"]

run = partial(exit_code, main)
"""Its exit code."""
