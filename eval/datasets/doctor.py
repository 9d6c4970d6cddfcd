"""What is wrong with a data set on disk, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from segclip.console import Finding, one_line
from segclip.data_pipelines.scenes.voc import voc_palette
from segclip.eval.datasets.check import DatasetCheck, quick_check
from segclip.eval.datasets.dataset import IGNORE, SegmentationDataset, describe
from segclip.eval.datasets.folder_sets import is_folder_set
from segclip.eval.datasets.label_scan import Entry, Scan, scan
from segclip.eval.datasets.layouts import Files, files_below
from segclip.eval.datasets.published import DATASETS, PUBLISHED
from segclip.processes import run_tasks

__all__ = ["ClassCount", "DatasetReport", "alignment", "check_dataset"]

PREPARATION = "docs/datasets.md"
A_TASK = 32
_SHOWN = 3


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs: ``value`` in the files; pixels; images that show it."""

    value: int
    name: str
    pixels: int
    images: int


@dataclass(frozen=True)
class DatasetReport:
    """All that was found.

    Attributes:
        check: what an evaluation's result keeps; None if the data set could not be opened.
        findings: one for each thing that was looked at.
        classes: label histogram, in the order of the labels.
        ignored_pixels: pixels that no metric counts.
    """

    check: DatasetCheck | None
    findings: tuple[Finding, ...]
    classes: tuple[ClassCount, ...] = ()
    ignored_pixels: int = 0

    @property
    def ok(self) -> bool:
        """Nothing is broken."""
        return all(each.status != "broken" for each in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "ok": self.ok,
            "check": self.check.as_dict() if self.check is not None else None,
            "findings": [vars(each) for each in self.findings],
            "classes": [vars(each) for each in self.classes],
            "ignored_pixels": self.ignored_pixels,
        }


def check_dataset(
    name: str,
    root: str | Path | None,
    split: str = "val",
    *,
    processes: int = 1,
    begin: Callable[[int], object] = lambda images: None,
    tick: Callable[[int], None] = lambda images: None,
) -> DatasetReport:
    """Look at the files of a split, at every pixel of them.

    Args:
        name, root, split: as for ``open_dataset``.
        processes: how many read.
        begin: told how many images will be read.
        tick: told how many more have been.

    Raises:
        ValueError: no data set of that name, or no root.
    """
    try:
        dataset, files = describe(name, root, split)
    except ValueError as error:
        if (name not in DATASETS or root is None) and not is_folder_set(name):
            raise
        remedy = f"see {PREPARATION}, or name the right folder by --root"
        return DatasetReport(None, (Finding("files", "broken", one_line(error), remedy),))
    findings = [_count(dataset), *_missing(files), *_orphans(files)]
    entries: list[Entry] = [
        (key, image, label)
        for key, image, label in zip(files.keys, files.images, files.labels, strict=True)
        if image.is_file() and label.is_file()
    ]
    begin(len(entries))
    tasks = [entries[first : first + A_TASK] for first in range(0, len(entries), A_TASK)]
    found = Scan()
    for part in run_tasks(scan, tasks, processes=processes, tick=tick):
        found.add(part)
    findings += [*_encodings(found), *alignment(dataset, found, files.labels_made_by)]
    first = int(dataset.reduce_zero_label)
    classes = tuple(
        ClassCount(value, each, found.pixels[value], found.files[value])
        for value, each in enumerate(dataset.classes, first)
    )
    ignored = found.pixels[IGNORE] + (found.pixels[0] if dataset.reduce_zero_label else 0)
    check = quick_check(dataset)
    wrong = tuple(f"{each.name}: {each.text}" for each in findings if each.status != "ok")
    broken = any(each.status == "broken" for each in findings)
    return DatasetReport(replace(check, ok=not broken, warnings=wrong), tuple(findings), classes, ignored)


def _count(dataset: SegmentationDataset) -> Finding:
    check = quick_check(dataset)
    text = f"{check.images:,} images in split {dataset.split!r}, keys {check.keys_sha256[:12]}"
    if check.expected_images is None:
        return Finding("split", "ok", text)
    if check.ok:
        return Finding("split", "ok", f"{text}, as published")
    return Finding(
        "split", "broken", f"{text}; published are {check.expected_images:,}",
        f"take the split as it was published ({PREPARATION}); scores on another are not comparable",
    )  # fmt: skip


def _missing(files: Files) -> Iterator[Finding]:
    no_image, no_label = files.missing()
    for what, numbers, paths in (("images", no_image, files.images), ("labels", no_label, files.labels)):
        if not numbers:
            yield Finding(what, "ok", f"a file for each of the {len(paths):,} keys")
            continue
        made_by = files.labels_made_by if what == "labels" else None
        yield Finding(
            what, "broken",
            f"{len(numbers):,} of {len(paths):,} are missing: " + _some([str(paths[each]) for each in numbers]),
            made_by or "unpack the download again; it may have been cut off",
        )  # fmt: skip


def _orphans(files: Files) -> Iterator[Finding]:
    """Label files that belong to no image."""
    if not files.label_folder.is_dir():
        return
    # Of the folder, not of the split: the labels of all splits may lie together.
    images = files_below(files.image_folder, files.layout.image_suffixes)
    labels = files_below(files.label_folder, (files.layout.label_suffix,))
    orphans = [str(path) for key, path in labels.items() if key not in images]
    if orphans:
        yield Finding(
            "orphans", "warning", f"{len(orphans):,} label files have no image: {_some(orphans)}",
            "images are missing, or the labels are of another split; they are not scored",
        )  # fmt: skip
    else:
        yield Finding("orphans", "ok", "every label file has an image")


def _encodings(found: Scan) -> Iterator[Finding]:
    yield Finding(
        "encodings", "ok", f"images {_modes(found.image_modes)}; labels {_modes(found.label_modes)}"
    )
    for name, wrong, remedy in (
        ("unreadable images", found.unreadable_images, "unpack them again, or score with --skip-broken"),
        (
            "unreadable labels", found.unreadable_labels,
            "labels are indices in a palette or grey PNG: take the files as published, or convert colours to numbers",
        ),
        ("sizes", found.other_sizes, "labels must have the pixels of their images: neither may have been resized"),
    ):  # fmt: skip
        if wrong:
            yield Finding(name, "broken", f"{len(wrong):,} of {found.images:,}: {_some(wrong)}", remedy)
    if found.smallest is not None and found.largest is not None and not found.other_sizes:
        yield Finding(
            "sizes", "ok",
            f"{found.smallest[0]} x {found.smallest[1]} to {found.largest[0]} x {found.largest[1]} pixels",
        )  # fmt: skip


def alignment(dataset: SegmentationDataset, found: Scan, made_by: str | None = None) -> Iterator[Finding]:
    """Whether the values of the label files are those of the class list.

    Args:
        dataset: whose class list.
        found: what its files hold.
        made_by: command that writes the label files, where there is one.
    """
    if not found.pixels:
        yield Finding("label values", "broken", "no label file could be read", "see above")
        return
    highest = dataset.highest_value
    outside = sorted(value for value in found.pixels if value > highest and value != IGNORE)
    known = PUBLISHED.get(dataset.name)
    if outside:
        counts = ", ".join(f"{value} ({found.pixels[value]:,} pixels)" for value in outside[:_SHOWN])
        more = f" and {len(outside) - _SHOWN} others" if len(outside) > _SHOWN else ""
        why, remedy = _why_outside(dataset, found, outside, made_by)
        yield Finding(
            "label values", "broken",
            f"outside the class list (0 to {highest}, or {IGNORE}): {counts}{more}, first in "
            f"{found.example[outside[0]]!r}{why}",
            remedy,
        )  # fmt: skip
        return
    never_ignored = known is not None and known.ignored == "none" and IGNORE in found.pixels
    if never_ignored and dataset.reduce_zero_label and highest not in found.pixels:
        yield Finding(
            "label values", "broken",
            f"value {highest} ({dataset.classes[-1]}) never occurs but {IGNORE} does: the labels look as if they had "
            "been counted from 0 already, so that every class would be taken for its neighbour",
            "take the label files as published; reading them subtracts 1",
        )  # fmt: skip
        return
    if known is not None and never_ignored:
        yield Finding(
            "label values", "broken" if dataset.name == "coco_object" else "warning",
            f"{IGNORE} occurs ({found.pixels[IGNORE]:,} pixels, first in {found.example[IGNORE]!r}), but labels of "
            f"{dataset.name} have no ignored pixels",
            f"{made_by} --overwrite" if made_by else "take the label files as published",
        )  # fmt: skip
    elif known is not None and known.ignored == "some" and IGNORE not in found.pixels:
        yield Finding(
            "label values", "warning",
            f"{IGNORE} never occurs, but labels of {dataset.name} have ignored pixels: are they other labels "
            "(SegmentationClassAug), or made anew?",
            "take the label files as published",
        )  # fmt: skip
    else:
        yield Finding("label values", "ok", f"all within the class list (0 to {highest}, or {IGNORE})")
    first = int(dataset.reduce_zero_label)
    never = [each for value, each in enumerate(dataset.classes, first) if value not in found.pixels]
    if never:
        yield Finding(
            "classes", "warning",
            f"{len(never)} of {len(dataset.classes)} never occur: {', '.join(never[:20])}"
            + (" …" if len(never) > 20 else ""),
            "such a class has no IoU, or one of 0 where it is predicted; if it should occur, these are other labels",
        )  # fmt: skip
    else:
        yield Finding("classes", "ok", f"all {len(dataset.classes)} occur")


def _why_outside(
    dataset: SegmentationDataset, found: Scan, outside: Sequence[int], made_by: str | None
) -> tuple[str, str]:
    """What these values look like, and the remedy."""
    known = PUBLISHED.get(dataset.name)
    if dataset.name in ("coco_object", "coco_stuff171") and outside[-1] <= 181:
        return (
            ": these look like COCO-Stuff's maps, not converted or converted for the other set",
            f"{made_by} --overwrite",
        )
    if dataset.name == "cityscapes19" and outside[-1] <= 33:
        return ": these look like labelIds, not labelTrainIds", f"{made_by} --overwrite"
    greys = _palette_greys(dataset.highest_value + 1)
    values = set(found.pixels) - {0, IGNORE}
    if len(values) > 1 and values <= greys:
        return (
            ": these are the brightnesses of VOC's colours, not indices: the palette was lost",
            "take the label files as published, and do not save them anew with a tool that converts palettes to grey",
        )
    if outside == [len(dataset.classes)] and not dataset.reduce_zero_label:
        return (
            ": exactly one too high, so the labels seem to count from 1",
            "if 0 stands for no class, set reduce_zero_label: true in the class file"
            if known is None
            else "take the label files as published",
        )
    if outside == [dataset.highest_value + 1] and dataset.reduce_zero_label:
        return ": exactly one too high, so the labels have been shifted", "take the label files as published"
    return (
        "",
        "the class list and the label files do not belong together: check which data set and version they are of",
    )


def _palette_greys(count: int) -> set[int]:
    """Brightness of the first colours of VOC's palette, and of its border, as a conversion to grey gives it."""
    palette = voc_palette()
    colours = [tuple(palette[3 * number : 3 * number + 3]) for number in (*range(1, count), IGNORE)]
    strip = Image.new("RGB", (len(colours), 1))
    strip.putdata(colours)
    return set(strip.convert("L").tobytes())


def _modes(modes: dict[str, int]) -> str:
    return ", ".join(f"{mode} ({count:,})" for mode, count in sorted(modes.items())) or "none"


def _some(items: Sequence[str]) -> str:
    return "; ".join(items[:_SHOWN]) + (f"; and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else "")
