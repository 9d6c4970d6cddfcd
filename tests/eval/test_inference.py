from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain_eval import plain_labels
from segclip.eval.inference import ClassScorer, patches_to_pixels, predict, window_scores
from segclip.eval.protocol import Geometry, load_protocol
from segclip.eval.windows import normalised, resize, window_grid


def geometry(window=24, stride=24, short_side=24, **changes) -> Geometry:
    fields = {"long_side_max": None, "filter": "bilinear", "antialias": False, **changes}
    return Geometry(short_side=short_side, window=window, stride=stride, **fields)


def slide(model, image_3hw, scorer, *, window, stride, batch_size=32) -> torch.Tensor:
    """Scores of every label at the size of the image."""
    size = tuple(image_3hw.shape[-2:])
    rules = geometry(window=window, stride=stride, short_side=min(size))
    (found,) = predict(model, [(image_3hw, size)], scorer, rules, batch_size=batch_size)
    return found.scores_Chw


def unit_rows(count: int, width: int = 16, seed: int = 3) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


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


@pytest.mark.parametrize("threshold_at", ["center", "pixel"])
def test_labels_are_counted_with_the_background(threshold_at) -> None:
    text, words = unit_rows(6), torch.tensor([0, 0, 1, 2, 2, 3])
    assert ClassScorer(text, 7.0, threshold=0.5, threshold_at=threshold_at).labels == 7
    assert ClassScorer(text, 7.0, word_label_N=words, background_words=True).labels == 4
    scorer = ClassScorer(
        text, 7.0, word_label_N=words, threshold=0.5, background_words=True, threshold_at="pixel"
    )
    assert scorer.labels == scorer.pixel_rule.labels == 4


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


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(10, 60), st.integers(10, 60)), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from([8, 12, 24]),
)
def test_batch_size_changes_no_bit(model, sizes, batch_size, stride) -> None:
    random = np.random.default_rng(len(sizes))
    scorer = ClassScorer(unit_rows(7), 10.0)
    rules = geometry(stride=stride)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def found(batch):
        pairs = ((resize(image, rules), image.shape[:2]) for image in images)
        return list(predict(model, pairs, scorer, rules, batch_size=batch))

    one, many = found(1), found(batch_size)
    assert [tuple(each.labels().shape) for each in one] == sizes
    for first, second in zip(one, many, strict=True):
        assert torch.equal(first.values_WGV, second.values_WGV)
        assert all(map(torch.equal, first.center_WHW, second.center_WHW))
        assert torch.equal(first.labels(), second.labels())


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


@pytest.mark.parametrize("rule", ["clip", "imagenet"])
def test_pixels_normalised_by_the_protocol(model, rule) -> None:
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    mean, std = {
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }[rule]
    by_hand = torch.stack([(pixels[:, k] / 255 - mean[k]) / std[k] for k in range(3)], dim=1)
    assert torch.allclose(normalised(pixels, rule), by_hand)
    assert normalised(pixels, "model") is pixels
    scorer = ClassScorer(unit_rows(5), 10.0)
    found = window_scores(model, pixels, scorer, rule).values_BGV
    assert torch.allclose(found, window_scores(model, by_hand, scorer).values_BGV, atol=1e-5)
    as_trained = window_scores(model, pixels, scorer).values_BGV
    assert torch.allclose(found, as_trained, atol=1e-4) == (rule == "clip")
    with pytest.raises(ValueError, match=r"takes uint8 images, got torch\.float32"):
        window_scores(model, by_hand, scorer, rule)


def scorer_of(protocol, dataset: str, classes: int, width: int) -> ClassScorer:
    """What ``build_scorer`` makes, with random words."""
    rule = protocol.rule(dataset)
    groups = [2 if number % 3 == 0 else 1 for number in range(classes)]
    groups = [len(rule.background_words), *groups] if rule.background_words else groups
    labels = [number for number, count in enumerate(groups) for _ in range(count)]
    return ClassScorer(
        unit_rows(len(labels), width),
        protocol.scale(dataset) or 10.0,
        protocol.score,
        protocol.top_k,
        torch.tensor(labels),
        rule.threshold,
        bool(rule.background_words),
        protocol.softmax_at,
        protocol.threshold_at,
        rule.smallest_share,
    )


CASES = [
    (name, dataset) for name in ("segclip", "groupvit", "tcl", "sclip") for dataset in ("voc21", "context59")
]


@pytest.mark.parametrize(("name", "dataset"), [*CASES, ("scenes", "scenes")])
def test_labels_of_every_protocol_are_those_of_the_plain_way(model, pictures, name, dataset) -> None:
    """The sizes are an eighth or so of the protocol's, for a network that is."""
    protocol = load_protocol(name)
    if name == "scenes":
        rules = geometry(window=24, stride=5, short_side=26, filter="bicubic", antialias=True)
    else:
        asked = protocol.geometry(SimpleNamespace(image_size=224, patch_size=16), dataset)
        side = 24 * asked.window // 224
        rules = geometry(
            window=side,
            stride=side * asked.stride // asked.window,
            short_side=asked.short_side * side // asked.window,
            long_side_max=64,
            normalisation=asked.normalisation,
        )
    scorer = scorer_of(protocol, dataset, 9, model.config.embed_dim)
    if name == "tcl" and scorer.threshold:  # random words fit no center so well
        scorer = replace(scorer, threshold=0.3)
    images = [pictures(60, 91), pictures(33, 20, 1), pictures(24, 24, 2)]
    pairs = [(resize(image, rules), image.shape[:2]) for image in images]
    seen: set[int] = set()
    for image, found in zip(images, predict(model, pairs, scorer, rules, batch_size=4), strict=True):
        expected = plain_labels(model, image, scorer, rules)
        assert (found.labels() != expected).sum() <= 2  # where two scores tie to rounding
        seen |= set(expected.unique().tolist())
    assert len(seen) > 2
    if scorer.threshold is not None or scorer.background_words:
        assert 0 in seen
