"""``state.json`` is read in each of its formats, and refused by the name of the field where it is none of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from segclip.trainer.checkpoints.train_state import FORMAT, STATE, Best, TrainState, read_state

DATA = {"name": "coco", "samples": 9, "manifest_sha256": "a" * 64}
NOW = TrainState(
    40, 0, 128, "run", "commit", DATA, data_counts={"store/bytes": 3}, bad_shards=[1], best=Best(20, 0.25)
)
# As the first commit with checkpoints wrote it.
FIRST: dict[str, Any] = {
    "step": 40,
    "seed": 0,
    "global_batch": 128,
    "mlflow_run_id": None,
    "git_commit": None,
}


def written(folder: Path, fields: object) -> Path:
    (folder / STATE).write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    fields = asdict(NOW)
    assert fields["format"] == FORMAT == 2
    assert read_state(written(tmp_path, fields)) == NOW


@pytest.mark.parametrize(
    "later",
    [
        {},
        {"data": DATA},
        {"data": {"sets": [DATA, {**DATA, "weight": 2.0}]}, "data_counts": {"a": 1}},
        {"data": None, "data_counts": {}, "bad_shards": [3], "best": None},
        {"best": {"step": 20, "miou": 0}},
    ],
)
def test_each_file_without_a_format_is_migrated(tmp_path: Path, later: dict[str, Any]) -> None:
    state = read_state(written(tmp_path, FIRST | later))
    best = Best(20, 0.0) if later.get("best") else None
    expected = {"data": None, "data_counts": {}, "bad_shards": [], **FIRST, **later, "best": best}
    assert state == TrainState(**expected)
    assert state.format == FORMAT


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": None}, "step = None: Input should be a valid integer"),
        ({"step": "40"}, "step = '40': Input should be a valid integer"),
        ({"step": True}, "step = True: Input should be a valid integer"),
        ({"step": -1}, "step = -1: Input should be greater than or equal to 0"),
        ({"global_batch": 0}, "global_batch = 0"),
        ({"steps": 40}, "unknown field 'steps'"),
        ({"best": {"step": 3}}, "field 'best.miou' is missing"),
        ({"best": {"step": 3, "miou": 0.5, "iou": 1}}, "unknown field 'best.iou'"),
        ({"data_counts": {"store/bytes": "x"}}, "data_counts.store/bytes = 'x'"),
        ({"bad_shards": 3}, "bad_shards = 3"),
        ({"data": {"name": "coco"}}, "data = {'name': 'coco'}: samples of a shard set must be of type int, not None"),
        ({"data": {"sets": 3}}, "data = {'sets': 3}: sets must be a list of shard sets"),
        ({"format": "2"}, "format = '2' is no format"),
        ({"format": 0}, "format = 0 is no format"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_state(written(tmp_path, asdict(NOW) | change))
    assert str(caught.value).startswith(f"{tmp_path / STATE}: {told}")
    assert str(caught.value).endswith(f"delete the folder {tmp_path} to resume from the one before")


@pytest.mark.parametrize("fields", [asdict(NOW), FIRST])
def test_a_field_that_is_missing_is_named(tmp_path: Path, fields: dict[str, Any]) -> None:
    for name in fields.keys() - {"format"}:
        with pytest.raises(ValueError, match=f"state.json: field '{name}' is missing"):
            read_state(written(tmp_path, {key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"step": 1} x'])
def test_what_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"state.json (is not readable|must hold an object)"):
        read_state(written(tmp_path, content))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"state\.json is not readable"):
        read_state(tmp_path)


def test_a_newer_format_asks_for_a_newer_segclip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format = 3, and .* up to 2: update segclip$"):
        read_state(written(tmp_path, asdict(NOW) | {"format": 3, "position": 7}))
