"""The network's own operations, one file each, as pure functions on tensors.

Every file opens with the formula it computes and holds ``<op>_reference`` (plain torch, the definition) and
the dispatcher ``<op>`` that the network calls.
"""

from segclip.kernels.contrastive import contrastive_loss
from segclip.kernels.masked_decoder import masked_pixel_loss, unshuffle
from segclip.kernels.patch_assignment import GumbelKey, PatchAssignment, patch_assignment
from segclip.kernels.superpixel_kl import superpixel_kl

__all__ = [
    "GumbelKey",
    "PatchAssignment",
    "contrastive_loss",
    "masked_pixel_loss",
    "patch_assignment",
    "superpixel_kl",
    "unshuffle",
]
