from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segclip.eval import inference
from segclip.eval.inference import (
    ClassScorer,
    label_map,
    patches_to_pixels,
    predict,
    resize,
    resize_scores,
    resized_size,
    slide,
    window_grid,
)
from segclip.eval.protocol import Geometry

sides = st.integers(1, 70)


def geometry(window=24, stride=24, short_side=24, **changes) -> Geometry:
    fields = {"long_side_max": None, "filter": "bilinear", "antialias": False, **changes}
    return Geometry(short_side=short_side, window=window, stride=stride, **fields)


def unit_rows(count: int, width: int = 16, seed: int = 3) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ------------------------------------------------------------------------------------------ windows


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 30), st.integers(1, 30))
def test_windows_cover_every_pixel_and_stay_inside(height, width, window, stride) -> None:
    stride = min(stride, window)
    count = np.zeros((height, width), int)
    found = window_grid(height, width, window, stride)
    for each in found:
        assert 0 <= each.top < each.bottom <= height
        assert 0 <= each.left < each.right <= width
        assert each.bottom - each.top == min(window, height)
        assert each.right - each.left == min(window, width)
        count[each.top : each.bottom, each.left : each.right] += 1
    assert count.min() >= 1
    assert len(set(found)) == len(found)


@settings(max_examples=60, deadline=None)
@given(sides, st.integers(1, 30), st.integers(1, 30))
def test_starts_are_multiples_of_the_stride_but_the_last_is_at_the_edge(length, window, stride) -> None:
    stride = min(stride, window)
    tops = [each.top for each in window_grid(length, 1, window, stride)]
    assert tops[:-1] == [number * stride for number in range(len(tops) - 1)]
    assert tops[-1] == max(length - window, 0)
    # None more than needed: without the last one, the end would be uncovered.
    assert len(tops) == 1 or tops[-2] + window < length


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((375, 500), 224, 2048, (224, 299)),
        ((500, 375), 224, 2048, (299, 224)),
        ((224, 224), 224, 2048, (224, 224)),
        ((100, 4000), 224, 2048, (51, 2048)),
        ((100, 4000), 224, None, (224, 8960)),
        ((1, 5000), 224, 2048, (1, 2048)),
    ],
)
def test_resized_size(size, short, longest, expected) -> None:
    assert resized_size(*size, short, longest) == expected


def test_resize_keeps_what_has_the_right_size_and_rounds_the_rest(pictures) -> None:
    same = pictures(24, 30)
    assert (resize(same, geometry()).permute(1, 2, 0).numpy() == same).all()
    flat = np.full((50, 70, 3), 77, np.uint8)
    for changes in ({}, {"filter": "bicubic"}, {"filter": "bicubic", "antialias": True}):
        out = resize(flat, geometry(**changes))
        assert out.dtype == torch.uint8
        assert out.shape == (3, 24, 34)
        assert (out == 77).all()


def test_antialias_averages_what_shrinking_skips() -> None:
    lines = np.zeros((96, 96, 3), np.uint8)
    lines[:, ::4] = 255
    plain, smooth = resize(lines, geometry()), resize(lines, geometry(antialias=True))
    assert plain.unique().tolist() == [0]
    assert (smooth.float()[:, 4:-4, 4:-4] - 64).abs().max() < 8


# ------------------------------------------------------------------------------------------ scores


def by_hand(centers_GE, window_E, text_NE, scale, top_k, threshold):
    """The original's rule, one center and one word at a time."""
    logits = [[scale * float(F.cosine_similarity(c, t, dim=0)) for t in text_NE] for c in centers_GE]
    fit = [float(F.cosine_similarity(window_E, t, dim=0)) for t in text_NE]
    kept = sorted(range(len(fit)), key=lambda n: -fit[n])[:top_k]
    rows = []
    for row in logits:
        whole, part = np.exp(row), np.exp([row[n] if n in kept else -np.inf for n in range(len(row))])
        rows.append(whole / whole.sum() * part / part.sum())
    best = [row.max() for row in rows]
    bound = min(threshold, max(best))
    return np.array([[float(b < bound), *row] for b, row in zip(best, rows, strict=True)])


@pytest.mark.parametrize("words", [3, 6, 21])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.95])
def test_top_k_rule_with_background(words, threshold) -> None:
    torch.manual_seed(words)
    centers, window, text = torch.randn(2, 4, 16), torch.randn(2, 16), unit_rows(words)
    found = ClassScorer(text, 7.0, "softmax_times_top_k", 5, threshold=threshold)(centers, window)
    for index in range(2):
        expected = by_hand(centers[index], window[index], text, 7.0, 5, threshold)
        assert np.allclose(found[index], expected, atol=1e-5)
    assert (found[..., 0].sum(-1) < 4).all()  # the best center of a window is never background


def test_plain_rule_is_a_softmax() -> None:
    centers, text = torch.randn(2, 4, 16), unit_rows(6)
    found = ClassScorer(text, 7.0)(centers, torch.randn(2, 16))
    assert torch.allclose(found, (7 * F.normalize(centers, dim=-1) @ text.T).softmax(-1))
    assert ClassScorer(text, 7.0).labels == 6
    assert ClassScorer(text, 7.0, threshold=0.5).labels == 7


def test_a_class_scores_as_its_best_synonym() -> None:
    centers, window, text = torch.randn(2, 4, 16), torch.randn(2, 16), unit_rows(5)
    plain = ClassScorer(text, 7.0)(centers, window)
    scorer = ClassScorer(text, 7.0, word_label_N=torch.tensor([0, 1, 0, 2, 2]))
    found = scorer(centers, window)
    assert scorer.labels == 3
    expected = torch.stack([plain[..., [0, 2]].amax(-1), plain[..., 1], plain[..., 3:].amax(-1)], -1)
    assert torch.equal(found, expected)


def test_embeddings_in_half_precision_are_scored_in_float32() -> None:
    centers, window, text = torch.randn(1, 4, 16).bfloat16(), torch.randn(1, 16).bfloat16(), unit_rows(5)
    found = ClassScorer(text, 7.0)(centers, window)
    assert found.dtype == torch.float32
    assert torch.equal(found, ClassScorer(text, 7.0)(centers.float(), window.float()))


# ------------------------------------------------------------------------------------------ whole images


def plain_way(model, image_3hw, text_NE, window, stride, threshold):
    """What the original does: a window at a time, two encoder passes, class scores for every pixel."""
    _, height, width = image_3hw.shape
    total = torch.zeros(len(text_NE) + 1, height, width)
    count = torch.zeros(height, width)
    for each in window_grid(height, width, window, stride):
        rows, columns = slice(each.top, each.bottom), slice(each.left, each.right)
        crop = image_3hw[None, :, rows, columns]
        with torch.no_grad():
            soft_GL = model.encode_image(crop).assignment.soft_BGL[0]
            vision = model.encode_image(crop)
            scale = model.logit_scale.exp().clamp(max=100)
        grid = crop.shape[2] // model.config.patch_size, crop.shape[3] // model.config.patch_size
        map_GHW = F.interpolate(
            soft_GL.view(1, -1, *grid), crop.shape[2:], mode="bilinear", align_corners=False
        )[0]
        onehot_HWG = F.one_hot(map_GHW.argmax(0), len(map_GHW)).float()
        affinity = F.normalize(vision.center_embed_BGE[0], dim=-1) @ text_NE.T * scale
        mean_fit = F.normalize(vision.image_embed_BE[0], dim=-1) @ text_NE.T
        out = torch.ones(len(text_NE), dtype=torch.bool)
        out[mean_fit.topk(min(5, len(text_NE))).indices] = False
        product = affinity.softmax(-1) * affinity.masked_fill(out, float("-inf")).softmax(-1)
        pixels_HWN = onehot_HWG @ product
        bound = min(threshold, float(product.max()))
        background = (pixels_HWN.amax(-1) < bound).float()
        total[:, rows, columns] += torch.cat([background[None], pixels_HWN.permute(2, 0, 1)])
        count[rows, columns] += 1
    return total / count


@pytest.mark.parametrize("size", [(24, 24), (24, 61), (50, 37)])
@pytest.mark.parametrize("stride", [24, 12, 7])
def test_slide_equals_the_plain_way(model, pictures, size, stride) -> None:
    image = torch.from_numpy(pictures(*size).copy()).permute(2, 0, 1)
    text = unit_rows(9)
    with torch.no_grad():
        scorer = ClassScorer(text, float(model.temperature()), "softmax_times_top_k", 5, threshold=0.3)
    found = slide(model, image, scorer, window=24, stride=stride, batch_size=3)
    expected = plain_way(model, image, text, 24, stride, 0.3)
    assert torch.allclose(found, expected, atol=2e-5)
    assert expected.argmax(0).unique().numel() > 1  # otherwise the test would see nothing


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(10, 60), st.integers(10, 60)), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from([8, 12, 24]),
)
def test_batch_size_changes_no_label(model, sizes, batch_size, stride) -> None:
    random = np.random.default_rng(len(sizes))
    scorer = ClassScorer(unit_rows(7), 10.0)
    rules = geometry(stride=stride)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def labels(batch):
        pairs = ((resize(image, rules), image.shape[:2]) for image in images)
        return [each.labels() for each in predict(model, pairs, scorer, rules, batch_size=batch)]

    one, many = labels(1), labels(batch_size)
    assert [tuple(each.shape) for each in one] == sizes
    for first, second in zip(one, many, strict=True):
        assert torch.equal(first, second)


def test_an_image_smaller_than_the_window_is_padded_not_stretched(model, pictures) -> None:
    image = torch.from_numpy(pictures(10, 40).copy()).permute(2, 0, 1)
    scorer = ClassScorer(unit_rows(5), 10.0)
    found = slide(model, image, scorer, window=24, stride=24)
    padded = torch.cat([image, image[:, -1:].expand(3, 14, 40)], dim=1)
    assert found.shape == (5, 10, 40)
    assert torch.allclose(found, slide(model, padded, scorer, window=24, stride=24)[:, :10], atol=1e-6)


def test_regions_are_numbered_through_all_windows(model, pictures) -> None:
    image = torch.from_numpy(pictures(24, 48).copy()).permute(2, 0, 1)
    scorer = ClassScorer(unit_rows(5), 10.0)
    (found,) = predict(model, [(image, (24, 48))], scorer, geometry())
    assert found.regions_hw[:, :24].max() < model.config.centers
    assert found.regions_hw[:, 24:].min() >= model.config.centers
    for region in found.regions_hw.unique():
        inside = found.scores_Chw[:, found.regions_hw == region]
        assert torch.equal(inside, inside[:, :1].expand_as(inside))


def test_no_batch_is_refused(model) -> None:
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        list(predict(model, [], ClassScorer(unit_rows(2), 1.0), geometry(), batch_size=0))


def test_patches_to_pixels_is_bilinear_in_float32() -> None:
    soft = torch.rand(2, 3, 8, dtype=torch.bfloat16)
    found = patches_to_pixels(soft, (2, 4), (7, 9))
    assert found.shape == (2, 3, 7, 9)
    assert found.dtype == torch.float32
    assert torch.equal(
        found, F.interpolate(soft.float().view(2, 3, 2, 4), (7, 9), mode="bilinear", align_corners=False)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))
def test_label_map_is_the_argmax_of_upsampled_scores(classes, height, width, at_once) -> None:
    scores = torch.rand(classes, 6, 5, generator=torch.Generator().manual_seed(classes))
    scores[::3] = 0
    kept = inference._LABEL_BYTES
    inference._LABEL_BYTES = (
        4 * height * width * at_once
    )  # so few classes at a time that the parts must be joined
    try:
        found = label_map(scores, (height, width))
    finally:
        inference._LABEL_BYTES = kept
    assert torch.equal(found, resize_scores(scores, (height, width)).argmax(0))


def test_label_map_of_equal_scores_takes_the_lowest(monkeypatch) -> None:
    monkeypatch.setattr(inference, "_LABEL_BYTES", 4 * 25)  # one class at a time
    assert (label_map(torch.ones(4, 3, 3), (5, 5)) == 0).all()
    assert (label_map(torch.zeros(4, 3, 3), (5, 5)) == 0).all()
