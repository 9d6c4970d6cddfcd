"""What the modules return.

Named tuples, not dataclasses: ZeRO stage 3 hooks on to the tensors of a module's output and looks for them in
tuples, lists and dicts only.

Shape letters: B batch, C vision width, D decoder width, E shared embedding, G centers, K visible patches, L
patches, M masked patches, N = 1 + L, T words.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from segclip.kernels.patch_assignment import PatchAssignment

__all__ = ["AggregationOutput", "MaskedOutput", "TextOutput", "TowerOutput", "TrainOutput", "VisionOutput"]


class AggregationOutput(NamedTuple):
    """Result of gathering patches into center tokens."""

    tokens_BGC: Tensor
    """Center tokens."""
    query_BGC: Tensor
    """Centers after they have looked at the patches, as compared with the keys."""
    assignment: PatchAssignment
    """Which patch belongs to which center."""


class VisionOutput(NamedTuple):
    """One pass of the vision tower over all patches."""

    image_embed_BE: Tensor
    """Image feature in the shared space, not normalised."""
    center_embed_BGE: Tensor
    """Each center token in the shared space (same norm and projection), not normalised."""
    center_tokens_BGC: Tensor
    """Center tokens after the last block."""
    pooled_BC: Tensor
    """Their maximum, before the last norm."""
    assignment: PatchAssignment
    """Hard and soft assignment of patches to centers, with logits."""
    query_BGC: Tensor
    """Centers as compared with the patches."""
    region_tokens_BGC: Tensor
    """Center tokens right after aggregation."""
    mid_hidden_BLC: Tensor
    """Patches after the first stage."""
    embedded_BNC: Tensor
    """Class token and patches after the first norm. The class token goes no further."""
    kept_BL: Tensor | None
    """Numbers of the patches this pass saw, if patch dropout left some out."""
    grid: tuple[int, int]
    """Rows and columns of patches in the image."""


class MaskedOutput(NamedTuple):
    """The second pass of the vision tower, over visible patches only."""

    order_BL: Tensor
    """Patch numbers, visible ones first."""
    visible_BKC: Tensor
    """Visible patches after the first stage."""
    aggregation: AggregationOutput
    """Their center tokens and assignment."""
    expanded_BKC: Tensor
    """Center tokens handed back to the patches."""
    hidden_BKC: Tensor
    """The same after blocks of their own: what the decoder starts from."""


class TowerOutput(NamedTuple):
    """Both passes of the vision tower."""

    main: VisionOutput
    masked: MaskedOutput | None


class TextOutput(NamedTuple):
    """Result of the text tower."""

    text_embed_BE: Tensor
    """Text feature in the shared space, not normalised."""
    hidden_BTE: Tensor | None
    """Every word in the shared space, if asked for."""


class TrainOutput(NamedTuple):
    """What one training pass hands to the trainer."""

    image_embed_BE: Tensor
    """Image features, not normalised."""
    text_embed_BE: Tensor
    """Text features, not normalised."""
    logit_scale: Tensor
    """Scalar that multiplies the cosines: exponentiated and clamped."""
    loss_superpixel: Tensor
    """Float32 scalar, mean over the samples given; 0 when switched off."""
    loss_reconstruction: Tensor
    """Float32 scalar, mean over masked pixels; 0 when switched off."""
    loss_text_reconstruction: Tensor
    """Float32 scalar, mean over masked words; 0 when switched off."""
    vision: VisionOutput
    """Everything of the main pass."""
    masked: MaskedOutput | None
    """Everything of the masked pass, if there was one."""

    @property
    def hard_BGL(self) -> Tensor:
        """One-hot assignment of the main pass."""
        return self.vision.assignment.hard_BGL
