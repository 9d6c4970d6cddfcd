"""A tiny network with lively weights, tiny data sets in the PASCAL VOC folders, broken picture files."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segclip.models.config import ModelConfig
from segclip.models.export_folder import export
from segclip.models.segclip import SegCLIP

TINY = ModelConfig(
    image_size=24,
    patch_size=6,
    vision_width=32,
    vision_heads=2,
    vision_layers=2,
    first_stage_layers=1,
    centers=6,
    center_layers=1,
    center_init_std=1.0,
    embed_dim=16,
    text_width=16,
    text_heads=2,
    text_layers=1,
    context_length=16,
    decoder_depth=1,
    decoder_heads=2,
)


def tiny_model(seed: int = 0) -> SegCLIP:
    """Random weights, large enough that patches and words differ in what comes out."""
    torch.manual_seed(seed)
    model = SegCLIP(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> SegCLIP:
    return tiny_model()


@pytest.fixture(scope="session")
def checkpoint(model: SegCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("run") / "export", {"protocol": "scenes"})


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int], np.ndarray]:
    """Smooth random pictures: (height, width, seed) -> uint8 [H, W, 3]."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return make


def _write_voc(
    root: Path,
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    classes: Sequence[str] | None = None,
) -> Path:
    """A data set as its authors would publish it: JPEG pictures, palette labels, a split file."""
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for key, image, label in pairs:
        Image.fromarray(image).save(folder / "JPEGImages" / f"{key}.jpg", quality=95)
        picture = Image.fromarray(label.astype(np.uint8))
        # Colours in no order: only indices may be read.
        picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
        picture.save(folder / "SegmentationClass" / f"{key}.png")
    lines = "".join(f"{key}\n" for key, _, _ in pairs)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text(lines)
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(list(classes)))
    return folder


SCENE_CLASSES = [f"{c} {s}" for c in ("red", "yellow", "white", "purple") for s in ("circle", "bar", "star")]
SCENE_CLASSES += ["sand", "grass", "water", "brick"]


@pytest.fixture
def scenes_root(tmp_path: Path, pictures: Callable[..., np.ndarray]) -> Path:
    """Five small scenes of differing sizes, all 16 classes and some ignored pixels."""
    random = np.random.default_rng(0)
    pairs = []
    for number, (height, width) in enumerate([(24, 24), (30, 41), (48, 24), (24, 24), (25, 60)]):
        label = random.integers(0, 16, (height, width))
        label[:2] = 255
        pairs.append((f"scene_{number}", pictures(height, width, number), label))
    _write_voc(tmp_path / "data", pairs, SCENE_CLASSES)
    return tmp_path / "data"


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb(path: Path, side: int) -> Path:
    """A PNG whose header promises ``side`` x ``side`` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    )
    return path


@pytest.fixture
def bomb() -> Callable[[Path, int], Path]:
    """(path, side) -> a PNG whose header promises far more than the file holds."""
    return _bomb


@pytest.fixture(scope="session")
def write_voc() -> Callable[..., Path]:
    """(root, [(key, image, label)], class names) -> the VOC2012 folder written under root."""
    return _write_voc


@pytest.fixture(scope="session")
def scene_classes() -> list[str]:
    return list(SCENE_CLASSES)
