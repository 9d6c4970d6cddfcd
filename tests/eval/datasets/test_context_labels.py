"""PASCAL Context's labels from its JSON file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from segclip.eval.datasets.class_lists import CONTEXT
from segclip.eval.datasets.context_labels import CONTEXT_IDS, convert_context, paint
from segclip.eval.datasets.dataset import open_dataset
from tests.eval.published_files import write_image


def runs(mask: np.ndarray) -> dict:
    flat = mask.flatten(order="F").astype(int)
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + np.diff(edges).tolist()}


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def content(tmp_path) -> dict:
    """Three images; in the second a sky with a hole, and an aeroplane over it."""
    images = []
    for number, phase in enumerate(["train", "val", "val"], 1):
        key = f"2008_00000{4 - number}"
        write_image(tmp_path / "VOC2010" / "JPEGImages" / f"{key}.jpg", 6, 8)
        images.append(
            {
                "image_id": 2008000000 + number,
                "file_name": f"{key}.jpg",
                "height": 6,
                "width": 8,
                "phase": phase,
            }
        )
    sky = box(0, 4, 0, 8)
    sky[0, 0] = False
    masks = [
        (2008000001, 458, box(0, 6, 0, 8)),
        (2008000002, 360, sky),
        (2008000002, 2, box(2, 5, 1, 3)),
    ]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "segmentation": runs(mask), "parts": []}
        for number, (image, category, mask) in enumerate(masks)
    ]
    return {"images": images, "annos_segmentation": annotations, "categories": [], "annos_occlusion": []}


@pytest.fixture
def write(tmp_path, content):
    def write(**change) -> str:
        path = tmp_path / "trainval_merged.json"
        path.write_text(json.dumps({**content, **change}))
        return str(path)

    return write


def test_labels_are_painted_in_order(tmp_path, write) -> None:
    done = convert_context(tmp_path, write())
    assert [(each.written, each.there) for each in done] == [(1, 0), (2, 0)]
    dataset = open_dataset("context60", tmp_path)
    assert dataset.keys == ("2008_000001", "2008_000002")  # in the order of names, as upstream's lists
    sky, aeroplane = 1 + CONTEXT.index("sky"), 1 + CONTEXT.index("aeroplane")
    expected = np.zeros((6, 8), int)
    expected[:4] = sky
    expected[0, 0] = 0
    expected[2:5, 1:3] = aeroplane
    np.testing.assert_array_equal(dataset[1].label_HW, expected)
    assert (dataset[0].label_HW == 0).all()  # nothing annotated
    np.testing.assert_array_equal(
        open_dataset("context59", tmp_path)[1].label_HW, np.where(expected == 0, 255, expected - 1)
    )
    assert (open_dataset("context60", tmp_path, "train")[0].label_HW == 1 + CONTEXT.index("wood")).all()


def test_ids_by_name() -> None:
    """The 59 stand in the order of their ids; a few by name."""
    assert list(CONTEXT_IDS) == sorted(set(CONTEXT_IDS))
    names = dict(zip(CONTEXT_IDS, CONTEXT, strict=True))
    assert [names[number] for number in (2, 19, 98, 258, 308, 360, 397, 427, 458)] == [
        "aeroplane", "bedclothes", "cow", "motorbike", "pottedplant", "sky", "table", "tvmonitor", "wood",
    ]  # fmt: skip


def test_it_goes_on_where_it_was_stopped(tmp_path, write, content) -> None:
    path = write()
    convert_context(tmp_path, path, ["val"])
    folder = tmp_path / "VOC2010" / "SegmentationClassContext"
    assert sorted(each.name for each in folder.iterdir()) == ["2008_000001.png", "2008_000002.png"]
    (folder / "2008_000001.png").unlink()
    kept = (folder / "2008_000002.png").stat().st_mtime_ns
    (done,) = convert_context(tmp_path, path, ["val"])
    assert (done.written, done.there) == (1, 1)
    assert (folder / "2008_000002.png").stat().st_mtime_ns == kept
    (done,) = convert_context(tmp_path, path, ["val"], overwrite=True)
    assert (done.written, done.there) == (2, 0)
    with Image.open(folder / "2008_000002.png") as picture:
        assert picture.mode == "L"


def test_the_list_is_written_last(tmp_path, write, content) -> None:
    content["annos_segmentation"][2]["category_id"] = 77
    with pytest.raises(ValueError, match="2008_000002: category 77 is none of the 59"):
        convert_context(tmp_path, write(), ["val"])
    assert not (tmp_path / "VOC2010" / "ImageSets").exists()
    assert not list((tmp_path / "VOC2010").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annos_segmentation": None},
            "is not trainval_merged.json: it has no lists 'images' and 'annos_seg",
        ),
        ({"images": []}, "annotation 0 is of image 2008000001, which is not listed"),
        ({"images": [{"image_id": 1}], "annos_segmentation": []}, "an entry lacks 'file_name'"),
        ({"annos_segmentation": [{"image_id": 2008000001}]}, "an entry lacks 'category_id'"),
    ],
)
def test_other_files(tmp_path, write, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        convert_context(tmp_path, write(**change))


def test_other_input(tmp_path, write) -> None:
    with pytest.raises(
        ValueError, match=r"no image of split 'vale' \(did you mean 'val'\?\); it has: train \(1\), val \(2\)"
    ):
        convert_context(tmp_path, write(), ["vale"])
    with pytest.raises(ValueError, match=r"annotation file .* does not exist"):
        convert_context(tmp_path, tmp_path / "x.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"is not valid JSON .*; is the download complete"):
        convert_context(tmp_path, tmp_path / "half.json")
    with pytest.raises(ValueError, match="no VOCdevkit/VOC2010/JPEGImages under"):
        convert_context(tmp_path / "VOC2010" / "JPEGImages", write())
    with pytest.raises(ValueError, match="x: the image is 8 x 6, a mask 4 x 3"):
        paint((6, 8), [(2, {"size": [3, 4], "counts": [12]})], "x")
    with pytest.raises(ValueError, match="x: the lengths of a mask fill 3 pixels of 48"):
        paint((6, 8), [(2, {"size": [6, 8], "counts": [3]})], "x")
