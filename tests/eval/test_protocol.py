from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from segclip.eval.protocol import DatasetRule, load_protocol, protocol_names
from segclip.eval.windows import resized_size

VIT_B16 = SimpleNamespace(image_size=224, patch_size=16)
TOY = SimpleNamespace(image_size=48, patch_size=6)


def write(tmp_path, **changes):
    content = load_protocol("segclip").model_dump(mode="json")
    for name, value in changes.items():
        content[name] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_shipped_protocols_load_and_carry_their_own_name() -> None:
    assert set(protocol_names()) >= {"segclip", "scenes", "photo"}
    for name in protocol_names():
        assert load_protocol(name).name == name


@pytest.mark.parametrize("name", protocol_names())
def test_lines_of_pixels_stay_within_bounds(name) -> None:
    """Without a bound on the long side, a picture of 4,000 x 1 would take minutes and gigabytes."""
    protocol = load_protocol(name)
    for dataset in (None, *protocol.datasets):
        sizes = protocol.geometry(TOY if name == "scenes" else VIT_B16, dataset)
        height, width = resized_size(1, 4000, sizes.short_side, sizes.long_side_max)
        assert height * width < 20_000


def test_segclip_is_the_originals() -> None:
    protocol = load_protocol("segclip")
    geometry = protocol.geometry(VIT_B16)
    assert (geometry.short_side, geometry.long_side_max, geometry.window, geometry.stride) == (
        224,
        2048,
        224,
        224,
    )
    assert protocol.templates == ("a photo of a {}.",)
    assert protocol.template_averaging == "mean_then_normalise"
    assert (protocol.score, protocol.top_k) == ("softmax_times_top_k", 5)
    rule = protocol.rule("voc21")
    assert (rule.background, rule.threshold) == ("threshold", 0.8)
    phrases = rule.phrases()
    assert phrases is not None
    assert len(phrases) == 20
    assert phrases[10] == ("table",)


SETS = {
    "voc21": 20, "voc20": 20, "context60": 59, "context59": 59, "coco_object": 80, "coco_stuff171": 171,
    "ade20k150": 150, "cityscapes19": 19,
}  # fmt: skip
WITH_BACKGROUND = {"voc21", "context60", "coco_object"}


@pytest.mark.parametrize("name", ["segclip", "groupvit", "tcl", "sclip"])
def test_published_protocols_cover_all_eight_data_sets(name) -> None:
    protocol = load_protocol(name)
    assert set(protocol.datasets) == set(SETS)
    for dataset, classes in SETS.items():
        rule = protocol.rule(dataset)
        assert (rule.background != "none") == (dataset in WITH_BACKGROUND)
        phrases = rule.phrases()
        assert phrases is None or len(phrases) == classes
        protocol.geometry(VIT_B16, dataset)
    # Context is in alphabetical order; an older list puts the classes of VOC first.
    renamed = {"airplane": "aeroplane", "plant": "pottedplant", "monitor": "tvmonitor"}
    firsts = [renamed.get(group[0], group[0]) for group in protocol.rule("context59").phrases() or ()]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    ("name", "dataset", "sizes"),
    [
        ("segclip", "coco_object", (224, 224, 224)),
        ("groupvit", "voc21", (448, 448, 224)),
        ("tcl", "cityscapes19", (448, 448, 224)),
        ("sclip", "voc21", (336, 224, 112)),
        ("sclip", "coco_stuff171", (448, 224, 112)),
        ("sclip", "cityscapes19", (560, 224, 112)),
    ],
)
def test_sizes_of_a_data_set(name, dataset, sizes) -> None:
    geometry = load_protocol(name).geometry(VIT_B16, dataset)
    assert (geometry.short_side, geometry.window, geometry.stride) == sizes
    assert geometry.long_side_max == 2048


def test_what_sets_the_published_protocols_apart() -> None:
    groupvit, tcl, sclip = (load_protocol(name) for name in ("groupvit", "tcl", "sclip"))
    assert [groupvit.rule(name).threshold for name in ("voc21", "context60", "coco_object")] == [
        0.95,
        0.35,
        0.95,
    ]
    assert [
        load_protocol("segclip").rule(name).threshold for name in ("voc21", "context60", "coco_object")
    ] == [*(0.8, 0.25, 0.65)]
    assert groupvit.normalisation == tcl.normalisation == "imagenet"
    assert len(tcl.templates) == 9
    assert {tcl.rule(name).threshold for name in WITH_BACKGROUND} == {0.5}
    assert len(sclip.templates) == len(set(sclip.templates)) == 80
    assert sclip.template_averaging == "normalise_mean_normalise"
    assert [sclip.scale(name) for name in ("voc21", "voc20", "context60", "coco_object")] == [65, 40, 50, 50]
    rule = sclip.rule("voc21")
    assert (rule.background, rule.threshold, len(rule.background_words)) == ("threshold_and_words", 0.1, 26)
    assert rule.smallest_share == 0.1
    phrases = rule.phrases()
    assert phrases is not None
    assert phrases[3] == ("ship",)
    assert len(phrases[14]) == 7
    assert groupvit.scale("voc21") is None


def test_the_record_holds_the_sentences_of_a_named_set(tmp_path) -> None:
    named = load_protocol(write(tmp_path, templates="openai_80"))
    assert len(named.model_dump(mode="json")["templates"]) == 80
    assert load_protocol(write(tmp_path, templates=list(named.templates))).sha256 == named.sha256


def test_sizes_follow_the_model() -> None:
    geometry = load_protocol("scenes").geometry(TOY)
    assert (geometry.short_side, geometry.window, geometry.stride) == (51, 48, 3)
    assert load_protocol("photo").geometry(TOY).stride == 24


def test_sizes_that_do_not_fit_the_model(tmp_path) -> None:
    with pytest.raises(ValueError, match="window 224 is no multiple of the model's patch size 6"):
        load_protocol("segclip").geometry(TOY)
    with pytest.raises(ValueError, match="window 256 is larger than the short side 224"):
        load_protocol(write(tmp_path, window=256)).geometry(VIT_B16)
    with pytest.raises(ValueError, match="stride 300 above window 224 would skip pixels"):
        load_protocol(write(tmp_path, stride=300)).geometry(VIT_B16)


def test_hash_is_of_the_content(tmp_path) -> None:
    path = write(tmp_path)
    assert load_protocol(path).sha256 == load_protocol("segclip").sha256
    rules = {"a": {"background": "none"}, "b": {"background": "none"}}
    turned = dict(reversed(rules.items()))
    first, second = (load_protocol(write(tmp_path, datasets=each)).sha256 for each in (rules, turned))
    assert first == second
    assert load_protocol(write(tmp_path, top_k=4)).sha256 != load_protocol("segclip").sha256


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown protocol 'segclp' \(did you mean 'segclip'\?\)"):
        load_protocol("segclp")
    with pytest.raises(ValueError, match=r"protocol file none\.yaml does not exist"):
        load_protocol("none.yaml")
    with pytest.raises(ValueError, match="says nothing about data set 'scenes'; it covers ade20k150, "):
        load_protocol("segclip").rule("scenes")


def test_data_sets_of_ones_own_have_their_own_words_and_no_background() -> None:
    assert load_protocol("segclip").rule("garden") == DatasetRule()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tempaltes": ["{}"]}, r"unknown field 'tempaltes' \(did you mean 'templates'\?\)"),
        ({"window": "large"}, "field 'window"),
        ({"short_side": 0}, "must be at least 1, got 0"),
        ({"templates": []}, "field 'templates'"),
        ({"templates": ["a photo"]}, r"template 'a photo' must hold \{\} exactly once"),
        (
            {"templates": "openai_8"},
            r"unknown set of templates \(did you mean 'openai_80'\?\).*got 'openai_8'",
        ),
        ({"datasets": {"voc21": {"window": 0}}}, "must be at least 1, got 0"),
        ({"datasets": {"voc21": {"classes": ["cat", "  "]}}}, "class 2 is empty"),
        ({"datasets": {"voc21": {"classes": ["cat", []]}}}, "class 2 is empty"),
        ({"datasets": {"voc21": {"classes": ["cat", ["dog", "Cat "]]}}}, "class 'Cat ' stands twice"),
        (
            {"datasets": {"voc21": {"background": "words", "background_words": ["sky", "sky"]}}},
            "background word 'sky' stands twice",
        ),
        (
            {"datasets": {"voc21": {"background": "words", "background_words": ["cat"], "classes": ["cat"]}}},
            "'cat' is a background word and a class",
        ),
        (
            {
                "datasets": {
                    "voc21": {
                        "background": "words",
                        "background_words": ["sky"],
                        "classes": ["cat"],
                        "shared_words": ["cat"],
                    }
                }
            },
            "'cat' of `shared_words` is not both",
        ),
        ({"datasets": {"voc21": {"smallest_share": 0.1}}}, "`smallest_share` needs a background"),
        ({"softmax_at": "pixel"}, "goes with `score: softmax` only"),
        ({"softmax_at": "pixel", "score": "softmax"}, "needs `threshold_at: pixel`"),
        (
            {
                "datasets": {
                    "voc21": {
                        "background": "threshold_and_words",
                        "threshold": 0.5,
                        "background_words": ["sky"],
                    }
                }
            },
            "voc21: `background: threshold_and_words` needs `threshold_at: pixel`",
        ),
        ({"normalisation": "imgnet"}, "field 'normalisation'.*got 'imgnet'"),
        ({"score": "cosine"}, "field 'score'.*got 'cosine'"),
        ({"datasets": {"voc21": {"background": "threshold"}}}, "`threshold` is given exactly when"),
        ({"datasets": {"voc21": {"threshold": 0.5}}}, "`threshold` is given exactly when"),
        ({"datasets": {"voc21": {"background": "threshold", "threshold": 80}}}, "less than 1"),
        ({"datasets": {"voc21": {"background": "words"}}}, "`background_words` are given exactly when"),
        (
            {"datasets": {"voc21": {"treshold": 0.5}}},
            r"voc21\.treshold' \(did you mean 'threshold'\?\)",
        ),
    ],
)
def test_bad_fields_are_named(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_protocol(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not valid YAML"), ("- a", "must be a mapping")])
def test_files_that_are_no_protocol(tmp_path, text, message) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_protocol(tmp_path / "x.yaml")
