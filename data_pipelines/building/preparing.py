"""What is done to a captioned picture on its way into a shard: checked, made smaller, captioned, given superpixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import interpolate

from segclip.data_pipelines.building.caption_cleaning import clean_caption
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.source import Raw, RefusedError
from segclip.data_pipelines.label_maps import SUPERPIXELS, encode_label_map
from segclip.data_pipelines.pictures import decode_picture, encode_jpeg, picture_kind, picture_size
from segclip.data_pipelines.superpixels import compute_superpixels

__all__ = ["Preparer"]


@dataclass(frozen=True)
class _Picture:
    """A picture ready for a shard: its members by extension, its digest as found, whether it was made smaller."""

    source: bytes
    kind: str
    content: bytes
    superpixels: bytes | None
    digest: bytes
    resized: bool


class Preparer:
    """Prepares pictures one after the other, and counts what it changes in them.

    Attributes:
        changes: how often something was changed, by what it was.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.changes: Counter[str] = Counter()
        self._last: _Picture | None = None

    def members(self, raw: Raw) -> tuple[dict[str, bytes], bytes]:
        """The members of a sample by extension, and the SHA-256 of its picture as it was found.

        Raises:
            RefusedError: its picture or its caption is not fit for training.
        """
        changes: Counter[str] = Counter()
        members = dict(raw.members)
        if raw.caption is not None:
            caption = clean_caption(raw.caption, self.options.longest_caption)
            if not caption.text:
                raise RefusedError("empty caption", "its caption is empty")
            changes["captions repaired"] += caption.repaired
            changes["captions cut"] += caption.cut
            members["txt"] = caption.text.encode()
        # Captions of the same picture follow each other: the work on it is done once.
        if self._last is None or self._last.source is not raw.picture:
            self._last = None
            self._last = self._prepare(raw.picture)
        picture = self._last
        changes["pictures resized"] += picture.resized
        changes["members left out"] += raw.left_out
        if picture.superpixels is not None:
            members[SUPERPIXELS] = picture.superpixels
        extension = raw.extension if raw.extension and not picture.resized else picture.kind
        self.changes += changes
        return {extension: picture.content, **members}, picture.digest

    def _prepare(self, content: bytes) -> _Picture:
        options = self.options
        pixels_CHW = self._decode(content)
        height, width = pixels_CHW.shape[1:]
        digest = hashlib.sha256(content).digest()
        stored, kind, resized = content, picture_kind(content), False
        if options.resize is not None and min(height, width) > options.resize:
            smaller_HW3 = _shrink(pixels_CHW, options.resize).permute(1, 2, 0).contiguous().numpy()
            stored, kind, resized = encode_jpeg(smaller_HW3, options.quality), "jpg", True
        superpixels = None
        if options.superpixels is not None:
            # Of the picture as it is stored, so that computing the maps later gives the same.
            if resized:
                pixels_CHW = self._decode(stored)
            try:
                ids_HW = compute_superpixels(
                    pixels_CHW.permute(1, 2, 0).contiguous().numpy(), options.superpixels
                )
            except ValueError as error:
                raise RefusedError("no superpixels", str(error)) from error
            superpixels = encode_label_map(ids_HW)
        return _Picture(content, kind, stored, superpixels, digest, resized)

    def _decode(self, content: bytes) -> Tensor:
        """uint8 [3, H, W]."""
        options = self.options
        try:
            height, width = picture_size(content)
        except ValueError as error:
            cause = (
                "empty picture file"
                if not content
                else "web page instead of a picture"
                if content.lstrip()[:1] == b"<"
                else "no JPEG, PNG or WebP"
            )
            raise RefusedError(cause, str(error)) from error
        size = f"it has {width} x {height} pixels"
        if height * width > options.max_pixels:
            raise RefusedError("too many pixels", f"{size}, more than --max-pixels {options.max_pixels}")
        if min(height, width) < options.min_side:
            raise RefusedError("picture too small", f"{size}: --min-side is {options.min_side}")
        try:
            return decode_picture(content, options.max_pixels)
        except ValueError as error:
            raise RefusedError("picture does not decode", str(error)) from error


def _shrink(picture_CHW: Tensor, short_side: int) -> Tensor:
    """Antialiased bicubic resize to a short side: uint8 [3, h, w]."""
    height, width = picture_CHW.shape[1:]
    scale = short_side / min(height, width)
    size = (max(short_side, round(height * scale)), max(short_side, round(width * scale)))
    return interpolate(picture_CHW.unsqueeze(0), size, mode="bicubic", antialias=True).squeeze(0)
