"""Other words for the same images."""

from __future__ import annotations

import numpy as np
import pytest

from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate, evaluate_part
from segclip.eval.protocol import load_protocol
from segclip.eval.scoring import Task, score
from segclip.eval.vocabulary import Vocabulary, load_vocabulary, variant_result, variants

SCENES = load_protocol("scenes")
WORDS = Vocabulary(
    synonyms={"sand": ("beach", "desert"), "a red bar": ("a crimson bar",), "submarine": ("boat",)},
    distractors=("dinosaur", "Grass", "violin"),
)


def test_sets_of_synonyms_and_distractors(scenes_root) -> None:
    """By a class's name or a protocol's word; fewer synonyms begin anew; words of other classes are left out."""
    dataset = open_dataset("scenes", scenes_root)
    first, second, distractors = variants(WORDS, dataset, SCENES)
    assert first.name == "synonyms 1"
    assert first.replaced == {"red bar": "a crimson bar", "sand": "beach"}
    assert second.replaced == {"red bar": "a crimson bar", "sand": "desert"}
    assert second.phrases[1] == ("a crimson bar",)
    assert second.phrases[0] == ("a red circle",)  # as the protocol asks
    assert distractors.added == ("dinosaur", "violin")
    assert distractors.phrases[-1] == ("dinosaur", "violin")
    assert len(distractors.phrases) == len(dataset.classes) + 1
    taken = Vocabulary(
        synonyms={"sand": ("water", "beach"), "grass": ("beach", "lawn")}, distractors=("lawn", "ox")
    )
    synonyms, distractors = variants(taken, dataset, SCENES)
    assert synonyms.replaced == {"sand": "beach", "grass": "lawn"}
    assert distractors.added == ("ox",)


def test_words_of_the_background_are_nobody_elses(tmp_path, write_voc, pictures) -> None:
    """SCLIP's background is "desk", among others: a table that was asked by it would never be found."""
    write_voc(tmp_path, [("a", pictures(8, 9), np.zeros((8, 9)))])
    dataset, protocol = open_dataset("voc21", tmp_path), load_protocol("sclip")
    words = Vocabulary(synonyms={"diningtable": ("desk", "dining table")}, distractors=("sky", "violin"))
    synonyms, distractors = variants(words, dataset, protocol)
    assert synonyms.replaced == {"diningtable": "dining table"}
    assert distractors.added == ("violin",)


def test_counts_equal_an_evaluation_with_those_words(model, scenes_root) -> None:
    """Beside the main figures in one pass, or alone under a protocol with these words: the same."""
    dataset = open_dataset("scenes", scenes_root)
    result = score(Task(dataset, SCENES, vocabulary=WORDS), model)
    assert result.confusion == evaluate(model, dataset, SCENES).confusion
    assert result.vocabulary is not None
    assert result.vocabulary.miou == result.miou
    asked = variants(WORDS, dataset, SCENES)
    for variant, found in zip(asked[:2], result.vocabulary.variants, strict=False):
        rule = {**SCENES.rule("scenes").model_dump(), "classes": variant.phrases}
        other = SCENES.model_validate({**SCENES.model_dump(), "datasets": {"scenes": rule}})
        assert found.miou == evaluate(model, dataset, other).miou
        assert found.miou != result.miou
    part = evaluate_part(model, dataset, SCENES, variants=asked)
    distractors = result.vocabulary.variants[2]
    confusion = part.variants[2]
    assert confusion.shape == (17, 17)
    assert confusion[16].sum() == 0
    assert confusion[:, 16].sum() > 0
    assert distractors.taken == pytest.approx(confusion[:, 16].sum() / result.pixels)


def test_what_a_distractor_gets_is_wrong() -> None:
    confusion = np.array([[8, 0, 2], [0, 5, 5], [0, 0, 0]])
    asked = variants_of_two()
    found = variant_result(asked, confusion, 2)
    assert found.miou == pytest.approx((8 / 10 + 5 / 10) / 2)
    assert found.taken == pytest.approx(7 / 20)


def variants_of_two():
    from segclip.eval.vocabulary import Variant

    return Variant("distractors", (("a",), ("b",), ("c",)), {}, ("c",))


def test_the_words_that_come_with_the_package_cover_voc() -> None:
    from segclip.eval.datasets.class_lists import VOC

    words = load_vocabulary()
    assert set(words.synonyms) == set(VOC)
    assert len(words.source_sha256) == 64
    for name, synonyms in words.synonyms.items():
        assert len(synonyms) == 3, name
    everything = [word for synonyms in words.synonyms.values() for word in synonyms] + list(words.distractors)
    assert len({word.lower() for word in everything} | set(words.synonyms)) == len(everything) + 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synonyms: [", "is not valid YAML"),
        ("- a", "must be a mapping of fields, got list"),
        ("synonym: {a: [b]}", "unknown field 'synonym' (did you mean 'synonyms'?)"),
        ("distractors: []", "neither `synonyms` nor `distractors`"),
        ("distractors: [a, ' ']", "distractor 2 is empty"),
        ("distractors: [a, b, A]", "distractor 'A' stands twice"),
        ("synonyms: {cat: [a, a]}", "synonym of 'cat': 'a' stands twice"),
        ("{source: x, distractors: [a]}", "unknown field 'source'"),
        ("synonyms: {cat: []}", "'cat' has no synonym"),
        ("synonyms: {cat: kitty}", "field 'synonyms.cat'"),
    ],
)
def test_files_that_are_none(text, message, tmp_path) -> None:
    (tmp_path / "words.yaml").write_text(text)
    with pytest.raises(ValueError) as refused:
        load_vocabulary(tmp_path / "words.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_that_applies(scenes_root, tmp_path) -> None:
    dataset = open_dataset("scenes", scenes_root)
    with pytest.raises(
        ValueError, match=r"for data set 'scenes': it has no class 'sands' \(did you mean 'sand'\?\)"
    ):
        variants(Vocabulary(synonyms={"sands": ("beach",)}), dataset, SCENES)
    with pytest.raises(ValueError, match=r"nowhere.yaml does not exist"):
        load_vocabulary(tmp_path / "nowhere.yaml")
