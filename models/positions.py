"""Positional embeddings: fixed sine-cosine tables and resampling of learned ones to other grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resample_grid", "sin_cos_1d", "sin_cos_2d"]


def resample_grid(table_NC: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned embedding for a class token and a grid, resampled bicubically to another grid.

    Args:
        table_NC: [1 + rows * columns of ``old``, C], class token first, patches in row order.
        old: its rows and columns.
        new: rows and columns wanted.

    Returns:
        [1 + rows * columns of ``new``, C]; the table itself where the grids agree.
    """
    if old == new:
        return table_NC
    grid_1Chw = table_NC[1:].float().T.reshape(1, -1, *old)
    grid_1Chw = F.interpolate(grid_1Chw, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table_NC[:1], grid_1Chw.flatten(2)[0].T.to(table_NC.dtype)])


def sin_cos_2d(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed table of a masked autoencoder's decoder: float32 [1 + rows * columns, width].

    Row 0 (class token) is zero. The first half of a row encodes the column, the second the row of the patch,
    each as sines then cosines of frequencies 10000^(-4 i / width), computed in float64.
    """
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    table = torch.cat([_sin_cos(width // 2, columns.flatten()), _sin_cos(width // 2, rows.flatten())], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()


def _sin_cos(width: int, places: Tensor) -> Tensor:
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sin_cos_1d(width: int, places: int) -> Tensor:
    """Fixed table of the text decoder: float32 [places, width].

    Column i of place n is the sine (even i) or cosine (odd i) of n * 10000^(-2 i / width); place 0 is all
    zero.
    """
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(places, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * columns / width)
    table = torch.where(columns % 2 == 0, angles.sin(), angles.cos())
    table[0] = 0
    return table.float()
