from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from segclip.eval.protocol import load_protocol, protocol_names

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
    with pytest.raises(ValueError, match=r"says nothing about data set 'voc20' \(did you mean 'voc21'\?\)"):
        load_protocol("segclip").rule("voc20")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tempaltes": ["{}"]}, r"unknown field 'tempaltes' \(did you mean 'templates'\?\)"),
        ({"window": "large"}, "field 'window"),
        ({"short_side": 0}, "must be at least 1, got 0"),
        ({"templates": []}, "field 'templates'"),
        ({"templates": ["a photo"]}, r"template 'a photo' must hold \{\} exactly once"),
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
