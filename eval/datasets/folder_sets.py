"""Data sets of one's own: folders of images and labels, and a YAML file that names the classes.

name: garden                 # default: the file's name
root: .                      # relative to this file; --data-root replaces it
images: images/{split}
labels: labels/{split}
classes: [background, cat, {potted plant: [potted plant, flower pot]}]
background: true             # class 0 means "none of the named"
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from segclip.eval.datasets.layouts import Layout
from segclip.eval.yaml_files import read_mapping, validated

__all__ = ["FolderSet", "is_folder_set", "load_folder_set"]


class FolderSet(BaseModel):
    """What the YAML file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", description="name in results; default: the file's name without its ending")
    root: str = Field(default=".", description="folder of the data, relative to the file")
    images: str = Field(
        default="images/{split}", description="folder of the images; {split} is the split's name"
    )
    labels: str = Field(default="labels/{split}", description="folder of the label PNGs")
    image_suffixes: tuple[str, ...] = Field(
        default=(".jpg", ".jpeg", ".png", ".webp"), min_length=1, description="endings of image files"
    )
    label_suffix: str = Field(default=".png", description="a key's label file is the key and this")
    split_file: str | None = Field(
        default=None,
        description="list of keys, one a line, such as {split}.txt; null: every image of the folder",
    )
    classes: tuple[str | dict[str, tuple[str, ...]], ...] = Field(
        min_length=1,
        description="names in the order of the labels; {name: [words]} where other words are asked for",
    )
    background: bool = Field(default=False, description="class 0 means none of the named classes")
    reduce_zero_label: bool = Field(
        default=False, description="label 0 is not scored, and `classes` begins with label 1"
    )

    @field_validator("classes")
    @classmethod
    def _one_name(
        cls, value: tuple[str | dict[str, tuple[str, ...]], ...]
    ) -> tuple[str | dict[str, tuple[str, ...]], ...]:
        for each in value:
            if isinstance(each, dict) and len(each) != 1:
                raise ValueError(f"a class with words is one name and a list, not {each!r}")
        return value

    def names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(each if isinstance(each, str) else next(iter(each)) for each in self.classes)

    def words(self) -> tuple[tuple[str, ...], ...]:
        """Words of each class."""
        return tuple((each,) if isinstance(each, str) else next(iter(each.values())) for each in self.classes)

    def layout(self) -> Layout:
        """Its folders."""
        return Layout(
            bases=("",),
            images=self.images,
            labels=self.labels,
            image_suffixes=self.image_suffixes,
            label_suffix=self.label_suffix,
            split_file=self.split_file,
        )


def is_folder_set(name: str) -> bool:
    """Whether a data set is given by the path of its YAML file."""
    return Path(name).suffix in (".yaml", ".yml")


def load_folder_set(path: str | Path) -> FolderSet:
    """Read the file.

    Raises:
        ValueError: it is missing or no YAML, or a field is wrong (the field is named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"data set file {path} does not exist")
    loaded = validated(FolderSet, read_mapping(path.read_bytes(), str(path)), str(path))
    return loaded if loaded.name else loaded.model_copy(update={"name": path.stem})
