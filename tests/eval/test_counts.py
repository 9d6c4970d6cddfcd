from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from segclip.eval.boundary import boundary, boundary_width
from segclip.eval.counts import ImageCounts, Tally, columns, image_counts, pair_counts, read_counts

CLASSES = 4


def images(count: int, seed: int = 0) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Key, truth with ignored pixels, prediction; of differing sizes."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        size = (int(random.integers(1, 40)), int(random.integers(1, 40)))
        truth_HW = random.integers(0, CLASSES, size)
        found_HW = np.where(random.random(size) < 0.5, truth_HW, random.integers(0, CLASSES, size))
        truth_HW[random.random(size) < 0.1] = 255
        made.append((f"image_{number:03d}", torch.from_numpy(truth_HW), torch.from_numpy(found_HW)))
    return made


def tally(of: list[tuple[str, torch.Tensor, torch.Tensor]]) -> ImageCounts:
    counting = Tally(CLASSES, torch.device("cpu"))
    for key, truth_HW, found_HW in of:
        counting.add(key, truth_HW, found_HW)
    return counting.counts()


def test_columns_are_the_confusion_matrix_and_the_bands() -> None:
    made = images(70)  # fetched in three parts
    counts = tally(made)
    assert counts.keys == tuple(key for key, _, _ in made)
    dense = counts.rows.toarray()
    for row, (_, truth_HW, found_HW) in zip(dense, made, strict=True):
        pairs = CLASSES * CLASSES
        kept = truth_HW != 255
        expected = confusion_matrix(truth_HW[kept].numpy(), found_HW[kept].numpy(), labels=range(CLASSES))
        assert (row[:pairs].reshape(CLASSES, CLASSES) == expected).all()
        width, ignored_HW = boundary_width(*truth_HW.shape), truth_HW == 255
        truth_band = boundary(truth_HW, ignored_HW, width)
        found_band = boundary(found_HW, ignored_HW, width)
        for label in range(CLASSES):
            true, found = truth_band & (truth_HW == label), found_band & (found_HW == label)
            expected_bands = [int((true & found).sum()), int(true.sum()), int(found.sum())]
            assert row[pairs + label :: CLASSES][:3].tolist() == expected_bands


def test_large_images_are_counted_in_pieces(monkeypatch) -> None:
    made = images(3)
    whole = tally(made)
    monkeypatch.setattr("segclip.eval.counts._PIXELS", 7)
    assert (tally(made).rows != whole.rows).nnz == 0


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(9))), st.integers(1, 4))
def test_order_and_sharing_of_the_images_change_nothing(order, ranks) -> None:
    made = images(9)
    whole = ImageCounts.join([tally(made)])
    shuffled = [made[number] for number in order]
    shared = ImageCounts.join([tally(shuffled[rank::ranks]) for rank in range(ranks)])
    assert shared.keys == whole.keys
    assert (shared.rows != whole.rows).nnz == 0
    assert shared.confusion().dtype == np.int64


def test_ranks_without_images_and_images_twice() -> None:
    made = images(2)
    joined = ImageCounts.join([ImageCounts.none(CLASSES), tally(made), ImageCounts.none(CLASSES)])
    assert joined.keys == ("image_000", "image_001")
    with pytest.raises(ValueError, match="image 'image_001' was counted twice"):
        ImageCounts.join([tally(made), tally(made[1:])])


def test_a_label_that_is_none_is_our_fault() -> None:
    counting = Tally(CLASSES, torch.device("cpu"))
    counting.add("a", torch.tensor([[0, 255]]), torch.tensor([[0, 9]]))  # ignored: nobody looks
    counting.counts()
    counting.add("b", torch.tensor([[0, 1]]), torch.tensor([[0, CLASSES]]))
    with pytest.raises(AssertionError, match=r"1 labels outside 0\.\.3"):
        counting.counts()


def test_counting_waits_for_nothing_on_a_gpu() -> None:
    """On a pretended GPU whatever needs a value on the host, as the size of a mask does, cannot be done at all."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        truth_HW = torch.zeros(30, 40, dtype=torch.int64, device="cuda")
        assert image_counts(truth_HW, truth_HW, CLASSES).shape == (columns(CLASSES) + 2,)
        assert pair_counts(truth_HW, truth_HW, CLASSES).shape == (CLASSES, CLASSES)
        with pytest.raises(DataDependentOutputException):
            int(truth_HW.sum())


def test_file_and_back(tmp_path) -> None:
    counts = tally(images(5))
    name, digest = counts.write(tmp_path, "result")
    assert name == f"result-counts-{digest[:12]}.npz"
    assert counts.write(tmp_path, "result") == (name, digest)  # the same bytes for the same counts
    read = read_counts(tmp_path / name, digest)
    assert (read.keys, read.classes) == (counts.keys, counts.classes)
    assert (read.rows != counts.rows).nnz == 0
    (tmp_path / name).write_bytes(b"else")
    with pytest.raises(ValueError, match="is not the file its result was written with"):
        read_counts(tmp_path / name, digest)
    with pytest.raises(ValueError, match="counts of each image is missing"):
        read_counts(tmp_path / "nowhere.npz", digest)
