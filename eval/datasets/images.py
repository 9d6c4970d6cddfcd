"""Reading pictures and label maps from disk, with the header looked at before any pixel is decoded."""

from __future__ import annotations

import struct
import threading
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["MAX_PIXELS", "image_mode", "read_image", "read_label", "to_rgb"]

MAX_PIXELS = 89_478_485
"""Largest picture that is decoded: Pillow's own bound. A PNG of a few kilobytes can promise gigabytes."""

_FILTERS = threading.Lock()  # warnings.catch_warnings changes process-wide state; readers run in threads
_BROKEN = (OSError, SyntaxError, EOFError, struct.error, IndexError, OverflowError)


def _open(path: Path) -> Image.Image:
    """Open ``path`` and check its header; no pixel is decoded yet."""
    if not path.exists():
        raise ValueError(f"no such image file: {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image file")
    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"{path} has more than the {MAX_PIXELS:,} pixels that are accepted; make it smaller first"
        ) from None
    except _BROKEN as error:
        raise ValueError(f"{path} does not decode as an image ({_brief(error)})") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise ValueError(
            f"{path} is {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; "
            "make it smaller first"
        )
    return picture


def image_mode(path: str | Path) -> str:
    """How the pixels of a file are encoded, in Pillow's words (RGB, P, L, …); only its header is read.

    Raises:
        ValueError: the file is missing, is no image, or has more than ``MAX_PIXELS`` pixels.
    """
    with _open(Path(path)) as picture:
        return picture.mode


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return "unknown format" if "cannot identify" in text else text or type(error).__name__


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of any Pillow image: transparency over white, 16-bit grey scaled to 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        top = 65535.0 if values.size and values.max() > 255 else 255.0
        picture = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def read_image(path: str | Path, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode an image file to uint8 [H, W, 3].

    Args:
        path: the file, in any format Pillow reads.
        upright: turn the picture as its EXIF orientation says. Right for a user's photo; wrong for a data
            set, whose label maps follow the stored pixels.

    Raises:
        ValueError: the file is missing, is no image, is cut off, or has more than ``MAX_PIXELS`` pixels.
    """
    path = Path(path)
    with _open(path) as picture:
        try:
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture) if upright else picture)
        except _BROKEN as error:
            raise ValueError(f"{path} does not decode as an image ({_brief(error)})") from error


def read_label(path: str | Path) -> NDArray[np.int64]:
    """Class numbers int64 [H, W] of a label file: indices of a palette image or values of a grey one.

    Raises:
        ValueError: the file is missing, does not decode, or holds colours.
    """
    path = Path(path)
    with _open(path) as picture:
        if picture.mode not in ("P", "L", "1", "I;16", "I"):
            raise ValueError(
                f"label {path} is a {picture.mode} image; labels are class numbers in a palette or grey image"
            )
        try:
            values = np.array(picture)
        except _BROKEN as error:
            raise ValueError(f"label {path} does not decode ({_brief(error)})") from error
    return values.astype(np.int64)
