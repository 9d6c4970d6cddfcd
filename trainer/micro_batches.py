"""How the batch of a step is shared by ranks, and cut into the micro-batches that fit into a rank's memory."""

from __future__ import annotations

from dataclasses import fields

from segclip.data_pipelines.samples import Batch

__all__ = ["batch_sizes", "split_batch"]

NEIGHBOURS = 2
"""How many sizes that fit are named on either side of one that does not."""


def batch_sizes(global_batch: int, world_size: int, micro_batch: int | None) -> tuple[int, int]:
    """Samples of one rank in a step, and in one of its forward passes.

    Args:
        global_batch: ``train.global_batch``.
        micro_batch: ``train.micro_batch``; None, or more than the rank's samples, for one pass.

    Raises:
        ValueError: the ranks cannot share the batch equally, or the micro-batch does not divide a rank's share.
    """
    if global_batch % world_size:
        below = global_batch // world_size * world_size
        batches = _listed([size for size in (below, below + world_size) if size])
        raise ValueError(
            f"train.global_batch is {global_batch}, which {world_size} ranks cannot share equally; "
            f"train.global_batch={batches} would do, or {_listed(_near(global_batch, world_size))} ranks"
        )
    local_batch = global_batch // world_size
    if micro_batch is None or micro_batch >= local_batch:
        return local_batch, local_batch
    if local_batch % micro_batch:
        raise ValueError(
            f"train.micro_batch is {micro_batch}, which does not divide the {local_batch} samples that each of "
            f"{world_size} ranks has of train.global_batch={global_batch}; "
            f"train.micro_batch={_listed(_near(local_batch, micro_batch))} would do"
        )
    return local_batch, micro_batch


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Micro-batches of ``size`` samples in their order, the last one perhaps smaller; views, not copies."""
    if size >= len(batch):
        return [batch]
    places = [slice(start, start + size) for start in range(0, len(batch), size)]
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return [Batch(**{name: value[place] for name, value in values.items()}) for place in places]


def _near(number: int, wanted: int) -> list[int]:
    """Divisors of ``number`` next to ``wanted``."""
    divisors = [size for size in range(1, number + 1) if number % size == 0]
    smaller = [size for size in divisors if size < wanted]
    return smaller[-NEIGHBOURS:] + [size for size in divisors if size > wanted][:NEIGHBOURS]


def _listed(sizes: list[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
