"""Pictures with captions in the forms a user has them, and what of a built set is compared."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from segclip.data_pipelines.scenes.scene import draw_scenes, render
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.tar import group_samples

FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))


def photo(number: int, side: int = 48) -> tuple[str, bytes, str]:
    """Name, content and caption of a picture of side x (side * 3 / 2) pixels, as JPEG, PNG or WebP in turn."""
    (scene,) = draw_scenes(9, number, 1)
    picture, _ = render(scene)
    extension, kind = FORMATS[number % 3]
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((side * 3 // 2, side)).save(buffer, kind)
    return f"p{number:03d}.{extension}", buffer.getvalue(), scene.caption


def write_photos(folder: Path, count: int, side: int = 48) -> list[tuple[str, bytes, str]]:
    """Write pictures with a text file beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [photo(number, side) for number in range(count)]
    for name, content, caption in photos:
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return photos


def write_tars(folder: Path, counts: list[int]) -> list[tuple[str, bytes, str]]:
    """Write tars as img2dataset does, with some photos in each."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [photo(number) for number in range(sum(counts))]
    start = 0
    for number, count in enumerate(counts):
        samples = [
            (
                name.partition(".")[0],
                {name.partition(".")[2]: content, "txt": caption.encode(), "json": b'{"a": 1}'},
            )
            for name, content, caption in photos[start : start + count]
        ]
        (folder / f"{number:05d}.tar").write_bytes(pack(samples)[0])
        start += count
    return photos


def samples_of(folder: Path) -> dict[str, dict[str, dict[str, bytes]]]:
    """Members by shard, key and extension of all tars of a folder."""
    shards = {}
    for path in sorted(folder.rglob("*.tar")):
        data = path.read_bytes()
        shards[path.relative_to(folder).as_posix()] = {
            sample.key: {name: data[a:b] for name, (a, b) in sample.members.items()}
            for sample in group_samples(data, path.name)
        }
    return shards


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
