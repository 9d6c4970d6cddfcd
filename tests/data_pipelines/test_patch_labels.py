from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from segclip.data_pipelines.patch_labels import patch_labels


def naive_vote(ids: np.ndarray[Any, Any], grid: tuple[int, int]) -> list[int]:
    height, width = ids.shape[0] // grid[0], ids.shape[1] // grid[1]
    votes = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            patch = ids[row * height : (row + 1) * height, column * width : (column + 1) * width]
            counts = Counter(patch.ravel().tolist())
            votes.append(min(counts, key=lambda each: (-counts[each], each)))
    return votes


@pytest.mark.parametrize("top", [3, 40, 60000])
def test_vote_is_the_most_frequent_id_and_the_lowest_on_a_tie(top: int) -> None:
    rng = np.random.default_rng(0)
    for grid in ((4, 6), (1, 1), (12, 18)):
        ids = rng.choice(rng.integers(0, top, 4), (12, 18)).astype(np.uint16)
        assert patch_labels(ids, grid).tolist() == naive_vote(ids, grid)


def test_batches_are_labelled_as_their_maps() -> None:
    maps = np.random.default_rng(1).integers(0, 9, (3, 8, 12))
    together = patch_labels(maps, (4, 3))
    assert together.shape == (3, 12)
    np.testing.assert_array_equal(together, np.stack([patch_labels(each, (4, 3)) for each in maps]))


def test_the_mean_rule_makes_ids_up_where_regions_meet() -> None:
    ids = np.zeros((4, 8), dtype=np.int64)
    ids[:, 2:4] = 7
    ids[:, 4:] = 9
    assert patch_labels(ids, (1, 2), "mean").tolist() == [3, 9]
    assert patch_labels(ids, (1, 2), "vote").tolist() == [0, 9]


def test_a_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="4 x 5 patches does not divide a map of 8 x 12"):
        patch_labels(np.zeros((8, 12), dtype=int), (4, 5))
