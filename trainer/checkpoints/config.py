"""When checkpoints are written, how many are kept, and where copies go: the section ``checkpoint``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from segclip.data_pipelines.storage.urls import normalise_url
from segclip.trainer.checkpoints.retention import Retention

__all__ = ["CheckpointConfig"]


class CheckpointConfig(Retention):
    """When to save, how much to keep, and where else."""

    every: int = Field(1000, gt=0, description="Steps between checkpoints; the last step is always saved.")
    upload: str | None = Field(
        None,
        description="URL in an object store that gets a copy of every checkpoint, by the same rules of what is kept, "
        "and from which the run goes on where its folder has none as new; null makes no copies.",
    )
    background: bool = Field(
        True,
        description="Copy what is to be saved into host memory (of each rank: its weights, float32 copies and moments) "
        "and write it while training goes on; false makes training wait for the disk instead.",
    )

    # Of the section, so that no message shows the value: it may hold a password by mistake.
    @model_validator(mode="after")
    def _may_be_written_to(self) -> Self:
        if self.upload is not None:
            if self.upload.startswith(("http:", "https:", "pipe:")):
                raise ValueError(
                    "checkpoint.upload must be a URL that can be written to: s3://, gs://, az:// or file://"
                )
            try:
                normalise_url(self.upload)
            except ValueError as error:
                raise ValueError(f"checkpoint.upload: {error}") from error
        return self
