"""What can be wrong with data, by cause, so that it can be counted and, where the user wishes, passed over."""

from __future__ import annotations

__all__ = ["BadSample", "BadShard", "DataError", "StoreError"]


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
