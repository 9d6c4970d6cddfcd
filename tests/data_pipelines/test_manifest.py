from __future__ import annotations

import json
from pathlib import Path

import pytest

from segclip.data_pipelines.manifest import parse_manifest, read_manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "names zero shards"),
        ({"version": 2}, "version = 2, and this version of segclip knows manifests up to 1: update segclip"),
        ({"version": "2"}, "not a valid manifest: version"),
        ({"extra": 1}, "not a valid manifest: extra"),
        ({"shards": [{"path": "../a.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}]}, "manifest"),
        (
            {"shards": [{"path": "a/../../b.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}]},
            "outside its folder",
        ),
        ({"shards": [{"path": "a.tar", "bytes": 1, "count": 1, "sha256": "0" * 64}] * 2}, "twice"),
        ({"shards": [{"path": "a.tar", "bytes": 1, "count": 0, "sha256": "0" * 64}]}, r"shards.0.count"),
    ],
)
def test_broken_manifests_are_refused(scene_set: Path, change: dict[str, object], message: str) -> None:
    document = json.loads((scene_set / "manifest.json").read_text())
    with pytest.raises(ValueError, match=message) as caught:
        parse_manifest(json.dumps({**document, **change}).encode(), "x/manifest.json")
    assert "x/manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_comes_back(scene_set: Path) -> None:
    manifest = read_manifest(str(scene_set))
    assert parse_manifest(manifest.to_json(), "x") == manifest
    with pytest.raises(ValueError, match="not a valid manifest"):
        parse_manifest(b"<html>", "x")
