"""What can be wrong with data, by cause, so that it can be counted and, where the user wishes, passed over."""

from __future__ import annotations

__all__ = ["OF_THE_SHARD", "REPAIR", "BadSample", "BadShard", "DataError", "StoreError"]

OF_THE_SHARD = frozenset({"missing", "length", "empty", "web_page"})
"""Causes of a ``StoreError`` that lie with the object and not with the way to it, so that they are the same on every
machine at every time."""
REPAIR = "upload it again, or delete it and run the segclip-shards build that made it once more"
"""What mends a shard that is not what its manifest states."""


class DataError(ValueError):
    """Something is wrong with data; ``cause`` is one word for counters, such as ``tar`` or ``timeout``."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        return type(self), (self.cause, str(self))


class StoreError(DataError):
    """An object could not be read from, or written to, its store."""


class BadShard(DataError):
    """A shard that is there but not what its manifest states, or not there at all."""


class BadSample(DataError):
    """A sample that the network cannot be shown."""
