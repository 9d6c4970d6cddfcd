from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segclip.eval.segment import Segmenter, segment
from segclip.models.checkpoint import load

WORDS = ["red circle", "sand", "water"]


def test_every_kind_of_picture_gives_the_same(model, pictures, tmp_path) -> None:
    array = pictures(40, 57)
    Image.fromarray(array).save(tmp_path / "x.png")
    segmenter = Segmenter(model, WORDS)
    first = segmenter(array)
    assert first.labels_HW.shape == (40, 57)
    assert first.names == tuple(WORDS)
    assert first.scores_Chw.shape == (3, 24, 34)
    assert sum(first.shares().values()) == pytest.approx(1)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for other in (tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(array), tensor):
        assert (segmenter(other).labels_HW == first.labels_HW).all()
    assert (segment(model, array, WORDS).labels_HW == first.labels_HW).all()


def test_backgrounds(model, pictures) -> None:
    picture = pictures(24, 24)
    plain = segment(model, picture, WORDS)
    low = segment(model, picture, WORDS, background="threshold", threshold=1e-6)
    assert low.names == ("background", *WORDS)
    assert (low.labels_HW == plain.labels_HW + 1).all()
    words = segment(model, picture, ["sand"], background="words", background_words=["sky", "sand"])
    assert words.names == ("background", "sand")
    assert words.scores_Chw.shape[0] == 2
    everything = Segmenter(model, WORDS, background="words")(picture)
    assert everything.labels_HW.max() <= 3


def test_synonyms_name_one_class(model, pictures) -> None:
    found = segment(model, pictures(24, 24), [["cat", "kitten"], "dog"])
    assert found.names == ("cat", "dog")
    assert found.scores_Chw.shape[0] == 2


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ([], {}, "no classes given"),
        ("cat", {}, "must be a list of words, got the single text 'cat'"),
        (["cat", " "], {}, "class 2 is empty; leave it out or name it"),
        (["cat", []], {}, "class 2 is empty; leave it out or name it"),
        (["cat", "CAT "], {}, "class 'CAT ' stands twice"),
        (["cat", ["dog", "cat"]], {}, "class 'cat' stands twice"),
        (["cat"], {"background": "threshold"}, "with the single class 'cat' every score is 1"),
        (["a", "b"], {"background": "threshold", "threshold": 1.5}, "must lie between 0 and 1, got 1.5"),
        (["a", "b"], {"threshold": 0.5}, "only used with background='threshold'"),
        (["a", "b"], {"background_words": ["sky"]}, "only used with background='words'"),
        (["sky"], {"background": "words", "background_words": ["sky"]}, "no background word is left"),
        (["a"], {"background": "black"}, "background must be None, 'threshold' or 'words', got 'black'"),
        (["a", "background"], {"background": "words"}, "a class is called 'background'"),
        (["a"], {"background": "words", "background_words": ["sky", ""]}, "background word 2 is empty"),
        (
            ["a"],
            {"background": "words", "background_words": ["sky", "Sky"]},
            "background word 'Sky' stands twice",
        ),
        (["Background"], {"background": "words"}, "a class is called 'background'"),
        (["a"], {"protocol": "photos"}, r"did you mean 'photo'\?"),
        (["a"], {"protocol": "segclip"}, "no multiple of the model's patch size"),
    ],
)
def test_what_makes_no_sense_is_refused(model, classes, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter(model, classes, **options)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 4, 4)],
)
def test_pictures_of_another_shape_or_type(model, picture) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        segment(model, picture, ["cat"])


def test_the_protocol_is_that_of_the_checkpoint(checkpoint, pictures) -> None:
    """As ``segclip-segment`` does: the card names it, and only without one it is ``photo``."""
    loaded = load(checkpoint)
    assert loaded.card["protocol"] == "scenes"
    image, words = pictures(50, 70), ["red circle", "sand"]
    by_card = segment(loaded, image, words).scores_Chw
    assert np.array_equal(by_card, segment(loaded, image, words, protocol="scenes").scores_Chw)
    loaded.card = {}
    without = segment(loaded, image, words).scores_Chw
    assert np.array_equal(without, segment(loaded, image, words, protocol="photo").scores_Chw)
    assert by_card.shape != without.shape or not np.array_equal(by_card, without)
