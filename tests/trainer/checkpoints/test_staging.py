from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from segclip.trainer.checkpoints.staging import StagingEngine


def state() -> dict[str, Any]:
    return {
        "module": OrderedDict(a=torch.arange(6.0).view(2, 3).T, b=torch.tensor(2.0, dtype=torch.bfloat16)),
        "list": [torch.zeros(0), (torch.ones(2), "word")],
        "number": 3,
    }


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected) and found.dtype == expected.dtype
    if isinstance(expected, dict):
        return type(found) is type(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and all(map(same, found, expected))
    return bool(found == expected)


def test_what_is_staged_does_not_change_with_training(tmp_path: Path) -> None:
    engine, value = StagingEngine(pin=False), state()
    engine.save(value, str(tmp_path / "a.pt"))
    staged = engine.take()
    value["module"]["a"].zero_()
    value["list"][1][0].zero_()
    value["list"].append(1)
    assert list(staged) == [tmp_path / "a.pt"]
    assert same(staged[tmp_path / "a.pt"], state())
    assert engine.take() == {}
    assert not any(tmp_path.iterdir())


def test_memory_is_used_again_where_it_fits(tmp_path: Path) -> None:
    engine, value = StagingEngine(pin=False), state()
    path = tmp_path / "step-1" / "a.pt"
    engine.save(value, str(path))
    first = engine.take()[path]
    value["module"]["a"] = torch.full((3, 2), 7.0)
    value["list"][1] = (torch.ones(5), "word")
    path = tmp_path / "step-2" / "a.pt"
    engine.save(value, str(path))
    second = engine.take()[path]
    assert same(second, value)
    assert second["module"]["a"].data_ptr() == first["module"]["a"].data_ptr()
    assert second["list"][1][0].data_ptr() != first["list"][1][0].data_ptr()


def test_views_of_one_buffer_are_copied_alone(tmp_path: Path) -> None:
    """Otherwise each file would hold the whole buffer."""
    flat = torch.arange(1000.0)
    engine = StagingEngine(pin=False)
    engine.save({"first": flat[:10], "second": flat[10:20]}, str(tmp_path / "a.pt"))
    (staged,) = engine.take().values()
    assert [each.untyped_storage().nbytes() for each in staged.values()] == [40, 40]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_copies_of_a_gpu_are_pinned(tmp_path: Path) -> None:
    engine = StagingEngine(pin=True)
    engine.save({"a": torch.ones(3, device="cuda")}, str(tmp_path / "a.pt"))
    (staged,) = engine.take().values()
    assert staged["a"].is_pinned()
    assert staged["a"].tolist() == [1, 1, 1]
