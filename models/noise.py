"""Where the random choices of a training pass come from.

``KeyedNoise`` names draws of ``segclip.keyed_random``: the same sample gets the same noise on any rank, in
any micro-batch and on recomputation. ``InjectedNoise`` holds given numbers, for tests and comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from segclip.kernels.patch_assignment import GumbelKey
from segclip.keyed_random import Purpose, uniform
from segclip.models.text_reconstruction import word_order

__all__ = ["InjectedNoise", "KeyedNoise", "Noise"]


class Noise(Protocol):
    """Random numbers of one batch; each method is asked for at most once in a pass."""

    def gumbel_main(self) -> Tensor | GumbelKey:
        """Gumbel noise of the main assignment, [B, G, L], or its key."""
        ...

    def gumbel_masked(self) -> Tensor | GumbelKey:
        """Gumbel noise of the assignment of visible patches, [B, G, K] in the order kept, or its key."""
        ...

    def mask_scores(self, patches: int) -> Tensor:
        """Scores [B, L]; the patches with the lowest stay visible."""
        ...

    def word_order(self, tokens_BT: Tensor) -> Tensor:
        """Places of the words, int64 [B, T], those that stay visible first."""
        ...

    def drop_path(self, branches: int) -> Tensor:
        """Uniform numbers [B, branches]; a branch is skipped where its number is below its rate."""
        ...

    def patch_dropout(self, patches: int) -> Tensor:
        """Scores [B, L]; the patches with the lowest stay."""
        ...


@dataclass(frozen=True)
class KeyedNoise:
    """Noise as a function of the run's seed and each sample's place in the run's stream."""

    seed: int
    """Seed of the run."""
    positions_B: Tensor
    """int64 [B], global index of each sample, on the device of the network."""

    def gumbel_main(self) -> GumbelKey:
        return GumbelKey(self.seed, Purpose.GUMBEL_MAIN, self.positions_B)

    def gumbel_masked(self) -> GumbelKey:
        return GumbelKey(self.seed, Purpose.GUMBEL_MASKED, self.positions_B)

    def mask_scores(self, patches: int) -> Tensor:
        return uniform(self.seed, Purpose.MASK, self.positions_B, patches)

    def word_order(self, tokens_BT: Tensor) -> Tensor:
        return word_order(
            uniform(self.seed, Purpose.TEXT_MASK, self.positions_B, tokens_BT.shape[1]), tokens_BT
        )

    def drop_path(self, branches: int) -> Tensor:
        return uniform(self.seed, Purpose.DROP_PATH, self.positions_B, branches)

    def patch_dropout(self, patches: int) -> Tensor:
        return uniform(self.seed, Purpose.PATCH_DROPOUT, self.positions_B, patches)


@dataclass(frozen=True)
class InjectedNoise:
    """Given noise. A choice that a pass needs and that is not given is an error."""

    gumbel_main_BGL: Tensor
    gumbel_masked_BGK: Tensor | None = None
    mask_scores_BL: Tensor | None = None
    word_order_BT: Tensor | None = None
    drop_path_BR: Tensor | None = None
    patch_dropout_BL: Tensor | None = None

    def gumbel_main(self) -> Tensor:
        return self.gumbel_main_BGL

    def gumbel_masked(self) -> Tensor:
        return _given(self.gumbel_masked_BGK, "gumbel_masked_BGK", None)

    def mask_scores(self, patches: int) -> Tensor:
        return _given(self.mask_scores_BL, "mask_scores_BL", patches)

    def word_order(self, tokens_BT: Tensor) -> Tensor:
        return _given(self.word_order_BT, "word_order_BT", tokens_BT.shape[1])

    def drop_path(self, branches: int) -> Tensor:
        return _given(self.drop_path_BR, "drop_path_BR", branches)

    def patch_dropout(self, patches: int) -> Tensor:
        return _given(self.patch_dropout_BL, "patch_dropout_BL", patches)


def _given(tensor: Tensor | None, name: str, count: int | None) -> Tensor:
    if tensor is None:
        raise ValueError(f"this pass needs {name}, which the injected noise does not hold")
    if count is not None and tensor.shape[-1] != count:
        raise ValueError(f"{name} must hold {count} numbers a sample, got shape {list(tensor.shape)}")
    return tensor
