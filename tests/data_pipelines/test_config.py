from __future__ import annotations

import pytest
from pydantic import ValidationError

from segclip.data_pipelines.config import CaptionParts, DataConfig


def test_defaults_are_the_papers_crop_and_whole_captions() -> None:
    config = DataConfig(shards="x")
    assert config.crop_scale == (0.5, 1.0)
    assert config.caption_parts.chances == (1.0, 0.0, 0.0)
    assert config.superpixels.patch_label == "vote"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_scale": (0.9, 0.5)}, "data.crop_scale is"),
        ({"crop_scale": (0.5, 1.5)}, "<= 1"),
        ({"crop_ratio": (0.0, 1.0)}, "data.crop_ratio is"),
        ({"wrkers": 2}, "wrkers"),
        ({"workers": "many"}, "workers"),
        ({"on_error": "ignore"}, "on_error"),
        ({"max_bad_samples": 1.5}, "max_bad_samples"),
        ({"store": {"range_mib": 0}}, "range_mib"),
        ({"store": {"secret_access_key": "x"}}, "secret_access_key"),
        ({"superpixels": {"patch_label": "median"}}, "patch_label"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"shards": "x", **values})


def source(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "shards": f"s3://bucket/{name}", **more}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.shards is None and data.sources names 0 sets"),
        ({"shards": "x", "sources": [source("a")]}, "not both or neither"),
        ({"sources": [source("a"), source("a")]}, r"the names \['a', 'a'\]: each may occur once"),
        ({"sources": [source("a", weight=1), source("b")]}, "give all of them one, or none to join the sets"),
        ({"sources": [source("a", weight=0)]}, "greater than 0"),
        ({"sources": [source("a/b")]}, "name"),
        ({"sources": [source("a", weight=2), source("b", weight=1)], "epoch_end": "drop"}, "no common epoch"),
        ({"shards": "x", "epoch_end": "cut"}, "epoch_end"),
    ],
)
def test_sources_that_do_not_go_together(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {"shards": "s3://key:hidden@bucket/set"},
        {"sources": [source("a"), {"name": "b", "shards": "https://x/y?X-Amz-Signature=hidden"}]},
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="never from a URL") as caught:
        DataConfig.model_validate(values)
    assert "hidden" not in str(caught.value)
    assert (
        DataConfig(shards="pipe:curl https://me@x/{}", allow_pipe=True).shards == "pipe:curl https://me@x/{}"
    )


def test_a_single_set_is_named_after_its_folder() -> None:
    (only,) = DataConfig(shards="s3://bucket/my set/").named_sources
    assert (only.name, only.shards, only.weight) == ("my_set", "s3://bucket/my set/", None)
    several = DataConfig.model_validate({"sources": [source("a", weight=2), source("b", weight=1)]})
    assert [each.name for each in several.named_sources] == ["a", "b"]
    assert several.weighted


def test_caption_parts_sum_to_one() -> None:
    assert CaptionParts(full=0.8, object=0.12, ground=0.08).chances == (0.8, 0.12, 0.08)
    with pytest.raises(ValidationError, match=r"must be 1, not 0.9"):
        CaptionParts(full=0.8, object=0.1)
