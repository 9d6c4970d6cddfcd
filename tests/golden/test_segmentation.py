"""Segmentation of whole pictures and by windows against the original."""

from __future__ import annotations

import numpy as np
import pytest

CASES = [
    *(f"whole/{name}" for name in ("n6_nobg", "n3_bg0.25", "n21_bg0.25")),
    *(f"whole/n6_bg{threshold}" for threshold in ("0.05", "0.25", "0.65", "0.95")),
    *(f"whole_{size}" for size in ("32x128", "128x128", "64x256")),
    *("slide0", "slide0/nobg", "slide1", "slide1/nobg"),
]
INPUTS = ("text_embedding", "with_bg", "bg_thresh", "label_margin", "image", "ori_shape", "group_margin")


@pytest.mark.parametrize("name", CASES)
def test_case(name, adapter, golden, under, compare, cfg, state) -> None:
    arrays = golden("A_seg.npz")
    root = name.split("/")[0]
    reference = {key: value for key, value in under(arrays, f"{name}/").items() if "/" not in key}
    case = {
        "image": arrays[f"{root}/image"],
        "text_embedding": reference["text_embedding"],
        "with_bg": bool(reference["with_bg"]),
        "bg_thresh": float(reference["bg_thresh"]),
        "mode": "slide" if root.startswith("slide") else "whole",
        "crop": cfg["image"],
        "stride": cfg["image"],
        "ori_shape": arrays.get(f"{root}/ori_shape"),
    }
    # Pixels where two classes tie to rounding have no right answer.
    where = {"label": reference["label_margin"] > 1e-5}
    assert where["label"].mean() > 0.9
    compare(reference, adapter.seg_outputs(cfg, state, case), ignore=INPUTS, where=where)


def test_all_golden_cases_are_tested(golden) -> None:
    found = {
        key.removesuffix("/text_embedding") for key in golden("A_seg.npz") if key.endswith("/text_embedding")
    }
    assert found == set(CASES)
    assert all(np.isfinite(value).all() for value in golden("A_seg.npz").values())
