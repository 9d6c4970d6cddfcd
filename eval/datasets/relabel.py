"""Converters that give each value of a label file another one: COCO-Object, COCO-Stuff, Cityscapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segclip.console import nearest
from segclip.eval.datasets import layouts
from segclip.eval.datasets.class_lists import coco_train_ids
from segclip.eval.datasets.images import read_label
from segclip.eval.datasets.label_files import Converted, run_converter, write_label
from segclip.eval.datasets.layouts import Layout, files_below, find_base
from segclip.processes import Tick

__all__ = ["RELABELLINGS", "Relabelling", "relabel_set"]

_IGNORE = 255


@dataclass(frozen=True)
class Relabelling:
    """From the label files of a download to those that are scored.

    Attributes:
        layout: where the written files belong.
        source_suffix: ending of the downloaded label files.
        not_these: files whose key ends so are not downloaded ones, though their ending fits.
        table: for each value that a downloaded file may hold, the value that is written.
        download: what to do if there are no such files.
    """

    layout: Layout
    source_suffix: str
    not_these: str | None
    table: Mapping[int, int]
    download: str


def _object_table() -> dict[int, int]:
    """COCO-Object: a thing's train id + 1; stuff and unlabelled pixels are background."""
    things = 91
    return {
        **{value: train_id + 1 if value < things else 0 for value, train_id in coco_train_ids().items()},
        _IGNORE: 0,
    }


# Ids of the 19 scored classes in the order of their train ids; all others, 0 to 33, are ignored.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_STUFF_MAPS = "unzip stuffthingmaps_trainval2017.zip into annotations/"

RELABELLINGS: dict[str, Relabelling] = {
    "coco-object": Relabelling(
        layouts.COCO_OBJECT, ".png", "TrainIds", _object_table(), _STUFF_MAPS,
    ),
    "coco-stuff": Relabelling(
        layouts.COCO_STUFF, ".png", "TrainIds", {**coco_train_ids(), _IGNORE: _IGNORE}, _STUFF_MAPS,
    ),
    "cityscapes": Relabelling(
        layouts.CITYSCAPES, "_gtFine_labelIds.png", None,
        {**dict.fromkeys(range(34), _IGNORE), **{number: place for place, number in enumerate(_CITYSCAPES_IDS)}},
        "unzip gtFine_trainvaltest.zip",
    ),
}  # fmt: skip


def relabel(path: Path, table: Mapping[int, int], what: str) -> NDArray[np.uint8]:
    """The label file at ``path`` with its values replaced, uint8 [H, W].

    Raises:
        ValueError: it does not decode, or holds a value that such a file cannot hold.
    """
    lookup = np.full(256, -1, dtype=np.int16)
    lookup[list(table)] = list(table.values())
    label_HW = read_label(path)
    found = np.unique(label_HW)
    wrong = found[(found > 255) | (lookup[np.minimum(found, 255)] < 0)]
    if wrong.size:
        raise ValueError(
            f"{path} holds {int(wrong[0])}, which is no label of the downloaded files {what}: has it been converted "
            "before, or is it of another set?"
        )
    return lookup[label_HW].astype(np.uint8)


def _convert(items: Sequence[tuple[str, Path, Path]], tick: Tick) -> int:
    for name, source, target in items:
        rule = RELABELLINGS[name]
        write_label(target, relabel(source, rule.table, f"NAME{rule.source_suffix} of {name}"))
        tick()
    return len(items)


def relabel_set(
    name: str,
    root: str | Path,
    splits: Sequence[str] | None = None,
    *,
    processes: int = 1,
    overwrite: bool = False,
) -> list[Converted]:
    """Write the label files of some splits beside the downloaded ones.

    Args:
        name: one of ``RELABELLINGS``.
        root: folder of the data set.
        splits: ``train`` or ``val``; None: those that are there.
        processes: how many work.
        overwrite: also files that are there.

    Raises:
        ValueError: no such folder, split or downloaded file, or one that holds other values.
    """
    rule = RELABELLINGS[name]
    layout = rule.layout
    base = find_base(layout, name, root)
    known = [split for split in ("train", "val") if (base / _folder(layout, split)).is_dir()]
    if not known:
        raise ValueError(f"there is no {_folder(layout, 'val')} in {base}: {rule.download}")
    done = []
    for split in splits or known:
        if split not in known:
            raise ValueError(
                f"split {split!r} has no folder in {base}{nearest(split, known)}; there are: {', '.join(known)}"
            )
        folder = base / _folder(layout, split)
        sources = {
            key: path
            for key, path in files_below(folder, (rule.source_suffix,)).items()
            if rule.not_these is None or not key.endswith(rule.not_these)
        }
        if not sources:
            raise ValueError(
                f"no downloaded label file (NAME{rule.source_suffix}) in {folder}: {rule.download}"
            )
        items = [(name, path, folder / f"{key}{layout.label_suffix}") for key, path in sources.items()]
        done.append(
            run_converter(
                f"{name} {split}",
                _convert,
                items,
                lambda item: item[2],
                processes=processes,
                overwrite=overwrite,
            )
        )
    return done


def _folder(layout: Layout, split: str) -> str:
    return layout.labels.replace("{split}", layout.split_folders.get(split, split))
