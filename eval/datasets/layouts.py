"""Where data sets keep their images and labels, and finding the files of a split there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segclip.console import nearest

__all__ = [
    "ADE20K", "CITYSCAPES", "COCO_OBJECT", "COCO_STUFF", "CONTEXT", "VOC", "Files", "Layout", "files_below",
    "find_base", "locate", "read_split",
]  # fmt: skip

ADVICE = "docs/datasets.md shows the folders of each data set"


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a data set.

    Attributes:
        bases: folders below the data root that may hold it, tried in turn; ``""`` is the root itself.
        images, labels: folders below the base; ``{split}`` stands for the folder of the split.
        image_suffixes: endings of image files; a key is the rest of the name, with the folders below ``images``.
        label_suffix: ending of the label file of a key.
        split_file: list of keys below the base, with ``{split}``; None: every image in the folder.
        split_folders: folder of a split where that is not the split's own name.
        labels_made_by: command that writes the label files where the download has none; ``--root`` is added to it.
    """

    bases: tuple[str, ...]
    images: str
    labels: str
    image_suffixes: tuple[str, ...] = (".jpg",)
    label_suffix: str = ".png"
    split_file: str | None = None
    split_folders: Mapping[str, str] = field(default_factory=dict)
    labels_made_by: str | None = None


@dataclass(frozen=True)
class Files:
    """Files of a split, in its order. None of them need exist; ``label_folder`` may hold others too."""

    layout: Layout
    base: Path
    keys: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    image_folder: Path
    label_folder: Path

    @property
    def labels_made_by(self) -> str | None:
        """Command that writes the label files, where there is one."""
        made_by = self.layout.labels_made_by
        return f"{made_by} --root {self.base}" if made_by is not None else None

    def missing(self) -> tuple[list[int], list[int]]:
        """Numbers of the entries without an image, and of those without a label."""
        return (
            [number for number, path in enumerate(self.images) if not path.is_file()],
            [number for number, path in enumerate(self.labels) if not path.is_file()],
        )


def _voc(year: int, labels: str, lists: str, made_by: str | None = None) -> Layout:
    return Layout(
        bases=(f"VOCdevkit/VOC{year}", f"VOC{year}", ""),
        images="JPEGImages",
        labels=labels,
        split_file=f"ImageSets/{lists}/{{split}}.txt",
        labels_made_by=made_by,
    )


VOC = _voc(2012, "SegmentationClass", "Segmentation")
CONTEXT = _voc(
    2010, "SegmentationClassContext", "SegmentationContext",
    "segclip-convert context --json trainval_merged.json",
)  # fmt: skip
_COCO_SPLITS = {"val": "val2017", "train": "train2017"}


def _coco(label_suffix: str, made_by: str) -> Layout:
    return Layout(
        bases=("coco_stuff164k", ""),
        images="images/{split}",
        labels="annotations/{split}",
        label_suffix=label_suffix,
        split_folders=_COCO_SPLITS,
        labels_made_by=made_by,
    )


COCO_STUFF = _coco("_labelTrainIds.png", "segclip-convert coco-stuff")
COCO_OBJECT = _coco("_instanceTrainIds.png", "segclip-convert coco-object")
ADE20K = Layout(
    bases=("ade/ADEChallengeData2016", "ADEChallengeData2016", ""),
    images="images/{split}",
    labels="annotations/{split}",
    split_folders={"val": "validation", "train": "training"},
)
CITYSCAPES = Layout(
    bases=("cityscapes", ""),
    images="leftImg8bit/{split}",
    labels="gtFine/{split}",
    image_suffixes=("_leftImg8bit.png",),
    label_suffix="_gtFine_labelTrainIds.png",
    labels_made_by="segclip-convert cityscapes",
)


def read_split(path: Path) -> tuple[str, ...]:
    """The keys of a split file, one a line, blank lines skipped.

    Raises:
        ValueError: the file is missing, empty or no text, or a key stands twice or leads out of the folder.
    """
    if not path.is_file():
        others = sorted(each.stem for each in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        raise ValueError(
            f"split file {path} is missing; is the data root right and the data set complete?"
            + (f" There are: {', '.join(others)}" if others else "")
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"split file {path} is no text ({error.reason} at byte {error.start})") from error
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise ValueError(f"split file {path} is empty")
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"split file {path} names {key!r} twice")
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"split file {path} names {key!r}, which leads out of the folder of the images")
        seen.add(key)
    return keys


def find_base(layout: Layout, name: str, root: str | Path) -> Path:
    """The folder below ``root`` that holds the data set: the first base with its folder of images.

    Raises:
        ValueError: ``root`` is no folder, or holds none of them.
    """
    root = Path(root)
    # Only the part without {split}: a missing split is another mistake than a wrong root.
    mark = layout.images.partition("{split}")[0].rstrip("/")
    wanted = os.path.join(layout.bases[0], mark)
    if not root.is_dir():
        raise ValueError(f"data root {root} is not a folder: give the one that holds {wanted}")
    for base in layout.bases:
        if (root / base / mark).is_dir():
            return root / base
    raise ValueError(f"no {wanted} under data root {root}: is this {name}? {ADVICE}")


def locate(layout: Layout, name: str, root: str | Path, split: str) -> Files:
    """The files of a split, which need not exist.

    Raises:
        ValueError: the root, the split file or the folder of the images is missing, or a key stands twice.
    """
    base = find_base(layout, name, root)
    folder = layout.split_folders.get(split, split)
    images, labels = (base / part.replace("{split}", folder) for part in (layout.images, layout.labels))
    if layout.split_file is not None:
        keys = read_split(base / layout.split_file.replace("{split}", split))
        paths = tuple(_image(images, key, layout.image_suffixes) for key in keys)
    else:
        listed = _list(images, layout.image_suffixes, name, split)
        keys, paths = tuple(listed), tuple(listed.values())
    return Files(
        layout,
        base,
        keys,
        paths,
        tuple(labels / f"{key}{layout.label_suffix}" for key in keys),
        images,
        labels,
    )


def _image(folder: Path, key: str, suffixes: tuple[str, ...]) -> Path:
    paths = [folder / f"{key}{suffix}" for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0]) if len(paths) > 1 else paths[0]


def files_below(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files with one of these endings in a folder and those in it, by key, in the keys' order; links are followed.

    Raises:
        ValueError: two files have the same key.
    """
    found: dict[str, Path] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            suffix = next((each for each in suffixes if name.lower().endswith(each.lower())), None)
            if suffix is None or name.startswith("."):
                continue
            path = Path(place, name)
            key = path.relative_to(folder).as_posix()[: -len(suffix)]
            if key in found:
                raise ValueError(
                    f"{found[key]} and {path.name} have the same name but for their ending: keep one"
                )
            found[key] = path
    return dict(sorted(found.items()))


def _list(folder: Path, suffixes: tuple[str, ...], name: str, split: str) -> dict[str, Path]:
    if not folder.is_dir():
        others = (
            sorted(each.name for each in folder.parent.iterdir() if each.is_dir())
            if folder.parent.is_dir()
            else []
        )
        raise ValueError(
            f"split {split!r} of {name} is missing: there is no folder {folder}{nearest(folder.name, others)}"
            + (f"; there are: {', '.join(others)}" if others else "")
        )
    found = files_below(folder, suffixes)
    if not found:
        raise ValueError(f"no image (NAME{', NAME'.join(suffixes)}) in {folder}")
    return found
