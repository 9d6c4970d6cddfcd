from __future__ import annotations

import math

import torch

from segclip.models.positions import resample_grid, sin_cos_1d, sin_cos_2d


def test_same_grid_is_untouched() -> None:
    table = torch.randn(13, 8)
    assert resample_grid(table, (3, 4), (3, 4)) is table


def test_class_row_is_kept_and_a_constant_stays_constant() -> None:
    table = torch.cat([torch.full((1, 8), 9.0), torch.ones(16, 8)])
    out = resample_grid(table, (4, 4), (2, 6))
    assert out.shape == (13, 8)
    torch.testing.assert_close(out[0], table[0])
    torch.testing.assert_close(out[1:], torch.ones(12, 8))


def test_rows_and_columns_are_not_mixed_up() -> None:
    rows = torch.arange(4.0).repeat_interleave(4)
    table = torch.cat([torch.zeros(1), rows])[:, None]
    out = resample_grid(table, (4, 4), (4, 8))[1:, 0].view(4, 8)
    torch.testing.assert_close(out, torch.arange(4.0)[:, None].expand(4, 8))


def test_resampling_keeps_type_and_gradient() -> None:
    table = torch.randn(17, 8, dtype=torch.bfloat16, requires_grad=True)
    out = resample_grid(table, (4, 4), (8, 8))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert table.grad is not None


def test_table_of_two_axes() -> None:
    table = sin_cos_2d(8, (2, 3))
    assert table.shape == (7, 8)
    assert not table[0].any()
    # Row 1, column 2: the column's angles come first; frequencies are 1 and 1/100.
    angles = [2, 0.02, 2, 0.02, 1, 0.01, 1, 0.01]
    functions = [math.sin, math.sin, math.cos, math.cos] * 2
    expected = [function(angle) for function, angle in zip(functions, angles, strict=True)]
    torch.testing.assert_close(table[1 + 3 + 2], torch.tensor(expected))


def test_table_of_one_axis() -> None:
    table = sin_cos_1d(4, 3)
    expected = [math.sin(2), math.cos(2 / 100), math.sin(2 / 10000), math.cos(2 / 10**6)]
    torch.testing.assert_close(table[2], torch.tensor(expected))
    assert not table[0].any()
