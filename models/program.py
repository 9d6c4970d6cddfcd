"""The vision tower as a ``torch.export`` program: runs without this package, in Python or C++.

Shape letters: B batch, C width, E shared embedding, G centers, L patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segclip.models.segclip import SegCLIP

__all__ = ["Regions", "export_program"]


class Regions(nn.Module):
    """Image to region tokens and assignment, in evaluation."""

    def __init__(self, model: SegCLIP) -> None:
        super().__init__()
        # Only what is computed: the program shall not carry the text tower.
        self.vision = model.eval().vision
        self._normalise = model.normalise

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Regions of images.

        Args:
            images_BCHW: uint8 pixels, normalised inside; or float, already normalised.

        Returns:
            ``image_embed`` [B, E] and ``region_embed`` [B, G, E] in the space shared with texts, not
            normalised; ``region_tokens`` [B, G, C] after the last block; ``assignment`` int64 [B, L], the
            center of each patch in row order; ``soft_assignment`` [B, G, L].
        """
        main = self.vision(self._normalise(images_BCHW)).main
        soft_BGL = main.assignment.soft_BGL
        return {
            "image_embed": main.image_embed_BE,
            "region_embed": main.center_embed_BGE,
            "region_tokens": main.center_tokens_BGC,
            "assignment": main.assignment.hard_BGL.argmax(dim=1),
            "soft_assignment": soft_BGL,
        }


def export_program(
    model: SegCLIP,
    path: str | Path,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.uint8,
) -> ExportedProgram:
    """Write ``Regions`` as a program that ``torch.export.load`` reads, for any number of images of one size.

    Args:
        size: height and width of the images; None for the training size.
        dtype: of the images: uint8 (normalised inside the program) or float32 (normalised before).

    Raises:
        ValueError: a size that the patch does not divide, or another type.
    """
    height, width = size or (model.config.image_size, model.config.image_size)
    patch = model.config.patch_size
    if height < patch or width < patch or height % patch or width % patch:
        raise ValueError(
            f"image height and width must be multiples of the patch size {patch}, got {height}x{width}"
        )
    if dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"a program takes images as uint8 or float32, got {dtype}")
    # Two images: torch.export takes a batch of one for a constant.
    example_BCHW = torch.zeros(2, 3, height, width, dtype=dtype, device=next(model.parameters()).device)
    with torch.no_grad():
        program = torch.export.export(
            Regions(model), (example_BCHW,), dynamic_shapes=({0: Dim("batch", min=1)},)
        )
    torch.export.save(program, path)
    return program
