"""Golden arrays, the adapter, and the comparison."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

HERE = Path(__file__).parent
Arrays = dict[str, NDArray[Any]]

# (part of a key, share of the largest reference value, absolute); the first that fits a key holds. The
# original itself differs between float32 and float64 by up to 2e-6 in activations and losses and 4e-6 in
# gradients.
TOLERANCES = (
    ("gradstat", 1e-4, 1e-6),
    ("grad", 5e-5, 1e-7),
    ("loss", 2e-5, 1e-6),
    ("hard_attn", 0.0, 1e-6),
    ("mae/mask", 0.0, 0.0),
    ("mae/ids_", 0.0, 0.0),
    ("label", 0.0, 0.0),
    ("argmax", 0.0, 0.0),
    ("count", 0.0, 1e-4),
    ("param_l2", 1e-5, 1e-6),
    ("final/", 2e-4, 1e-6),
    ("adam/", 1e-3, 1e-8),
    ("_f64", 1e-9, 1e-12),
    ("", 2e-5, 2e-6),
)


@cache
def _arrays(name: str) -> Arrays:
    with np.load(HERE / "data" / name) as file:
        return {key: file[key] for key in file.files}


@cache
def _json(name: str) -> Any:
    return json.loads((HERE / "data" / name).read_text(encoding="utf-8"))


def _compare(
    reference: Mapping[str, NDArray[Any]],
    got: Mapping[str, NDArray[Any]],
    ignore: Collection[str] = (),
    where: Mapping[str, NDArray[np.bool_]] | None = None,
) -> None:
    """Every golden array that is not ignored must be there and agree; ``where`` picks what to compare."""
    missing = sorted(key for key in reference if key not in got and key not in ignore)
    assert not missing, f"not produced: {missing}"
    assert any(key in got for key in reference), "nothing to compare"
    problems = []
    for key, expected in reference.items():
        if key in ignore or key not in got:
            continue
        found = np.asarray(got[key])
        if expected.dtype.kind in "US":
            if not (expected == found).all():
                problems.append(f"{key}: different names")
            continue
        if expected.shape != found.shape:
            problems.append(f"{key}: shape {found.shape}, expected {expected.shape}")
            continue
        picked = (where or {}).get(key, ...)
        a, b = expected.astype(np.float64)[picked], found.astype(np.float64)[picked]
        largest = float(np.abs(a).max(initial=0.0))
        error = float(np.abs(a - b).max(initial=0.0))
        relative, absolute = next((r, t) for part, r, t in TOLERANCES if part in key)
        if not np.isfinite(b).all() or error > absolute + relative * largest:
            problems.append(f"{key}: off by {error:.3e} of {largest:.3e}")
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Arrays]:
    """Arrays of a golden file by its name."""
    return _arrays


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], Any]:
    """Content of a golden JSON file by its name."""
    return _json


@pytest.fixture(scope="session")
def under() -> Callable[[Mapping[str, Any], str], dict[str, Any]]:
    """Entries whose key starts with a prefix, without it."""
    return lambda arrays, prefix: {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def compare() -> Callable[..., None]:
    """The comparison."""
    return _compare


@pytest.fixture(scope="session")
def cfg() -> dict[str, Any]:
    """Sizes of golden model A."""
    found: dict[str, Any] = _json("configs.json")["A"]
    return found


@pytest.fixture(scope="session")
def state() -> Arrays:
    """Weights of golden model A."""
    return _arrays("A_state.npz")


@pytest.fixture(scope="session")
def adapter() -> ModuleType:
    """``adapter.py`` as a module."""
    spec = importlib.util.spec_from_file_location("golden_adapter", HERE / "adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
