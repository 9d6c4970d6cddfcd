"""What a result says of the images it was measured on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from segclip.eval.datasets.check import quick_check
from segclip.eval.datasets.dataset import open_dataset


def test_the_identity_of_a_split(scenes_root) -> None:
    dataset = open_dataset("scenes", scenes_root)
    check = quick_check(dataset)
    assert (check.dataset, check.split, check.images, check.expected_images) == ("scenes", "val", 5, None)
    text = "".join(f"scene_{number}\n" for number in range(5))
    assert check.keys_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert check.ok
    assert json.loads(json.dumps(check.as_dict()))["warnings"] == []
    # The order is part of it: bootstrap intervals and paired comparisons go by position.
    assert quick_check(dataset.pick([1, 0, 2, 3, 4])).keys_sha256 != check.keys_sha256


def test_a_part_of_a_published_split_says_so(scenes_root) -> None:
    dataset = replace(open_dataset("scenes", scenes_root), expected_images=5)
    assert quick_check(dataset).ok
    check = quick_check(dataset.first(2))
    assert not check.ok
    assert "2 images, but split 'val' of scenes has 5" in check.warnings[0]


def test_so_does_a_part_of_one_that_nobody_published(scenes_root) -> None:
    check = quick_check(open_dataset("scenes", scenes_root).first(4).first(2))
    assert (check.ok, check.images, check.expected_images) == (False, 2, 5)
    assert quick_check(open_dataset("scenes", scenes_root).first(5)).ok
