"""Settings of reading from a store."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["StoreConfig"]


class StoreConfig(BaseModel):
    """How objects are read from a store. Credentials are no part of it: they come from the environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connections: int = Field(
        default=8, ge=1, description="Ranges (parts of a shard) that each worker reads at a time."
    )
    range_mib: int = Field(default=8, ge=1, description="Largest size of a range in MiB.")
    connect_seconds: float = Field(
        default=5.0, gt=0, description="Longest wait for a connection, in seconds."
    )
    stall_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Longest wait for the first byte, and from one to the next, in seconds.",
    )
    min_rate_kib: int = Field(
        default=256,
        ge=1,
        description="A range that comes more slowly than so many KiB/s is given up and asked for again.",
    )
    retries: int = Field(
        default=20, ge=0, description="Attempts of a range that may fail in a row, after the first."
    )
    retry_seconds: float = Field(
        default=180.0,
        gt=0,
        description="No attempt begins later than so many seconds after the last byte that came.",
    )
    prefetch_mib: int = Field(
        default=1024,
        ge=0,
        description="Shards are fetched ahead while those a worker holds stay within so many MiB.",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder on a local disk that keeps shards for all workers of a node; null keeps none.",
    )
    cache_gib: float = Field(default=100.0, gt=0, description="Largest size of that folder in GiB.")
