"""The commands of ``segclip-shards`` that make sets of a user's own data: ``build``, ``merge`` and ``superpixels``.

What takes long to import is imported by the command that needs it: ``--help`` and a wrong option should not wait for
torch.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from segclip.console import progress
from segclip.data_pipelines.building.options import Options
from segclip.data_pipelines.building.tables import (
    CAPTION_COLUMNS,
    KARPATHY_SPLITS,
    PICTURE_COLUMNS,
    TableOptions,
)
from segclip.data_pipelines.superpixels import method_from_text

if TYPE_CHECKING:
    from segclip.data_pipelines.building.source import Source

__all__ = ["add_build_commands"]

SUPERPIXELS_HELP = (
    "slic:SEGMENTS[,COMPACTNESS], felzenszwalb:SCALE,SIGMA,MIN_SIZE or none (default: %(default)s)"
)
UNBOUNDED = 10**9


def _build(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.building.open_source import open_source

    options = Options(
        per_shard=arguments.per_shard,
        superpixels=method_from_text(arguments.superpixels),
        resize=arguments.resize,
        quality=arguments.quality,
        longest_caption=arguments.longest_caption,
        max_pixels=arguments.max_pixels,
        min_side=arguments.min_side,
        unique=arguments.unique,
    )
    part = _part(arguments.part)
    table = TableOptions(
        arguments.picture_column, arguments.caption_column, tuple(arguments.splits.split(","))
    )
    source = open_source(
        arguments.source, captions=arguments.captions, table=table, per_shard=arguments.per_shard
    )
    _run(source, options, part, arguments)


def _superpixels(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.building.tar_source import open_shards
    from segclip.data_pipelines.storage.urls import normalise_url

    method = method_from_text(arguments.superpixels)
    if method is None:
        raise ValueError("superpixels 'none' would only copy the set: name a method, such as slic:64")
    if normalise_url(arguments.url) == normalise_url(arguments.out):
        raise ValueError(f"--out {arguments.out} is the set itself: write the new set to another place")
    # Shards keep their samples: what is not fit for training anyway is rejected, nothing else is changed.
    options = Options(
        per_shard=UNBOUNDED, superpixels=method, min_side=1, max_pixels=arguments.max_pixels, unique=False
    )
    part = _part(arguments.part)
    _run(open_shards(arguments.url), options, part, arguments)


def _run(source: Source, options: Options, part: tuple[int, int], arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.building.build import build_set

    with progress() as bar:
        task = bar.add_task("samples", total=None)
        read = build_set(
            arguments.out,
            source,
            options,
            processes=arguments.processes,
            part=part,
            overwrite=arguments.overwrite,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if part[1] > 1:
        print(
            f"part {part[0]}/{part[1]}: {read} records read now; when all parts are done: "
            f"segclip-shards merge {arguments.out}"
        )
    else:
        _merge(arguments.out)


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    try:
        if not slash:
            raise ValueError
        part = int(number), int(parts)
    except ValueError as error:
        raise ValueError(f"--part {text!r} is not of the form I/N, such as 0/8 for the first of 8") from error
    if not 0 <= part[0] < part[1]:
        raise ValueError(
            f"--part {text!r}: I counts from 0 and is less than N, such as 0/8 for the first of 8"
        )
    return part


def _merge(url: str) -> None:
    from segclip.data_pipelines.building.merge import merge_set
    from segclip.data_pipelines.building.records import REPORT

    with progress() as bar:
        task = bar.add_task("duplicates", total=None, visible=False)
        merged = merge_set(
            url, lambda done, total: bar.update(task, completed=done, total=total, visible=True)
        )
    manifest = merged.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    print(f"{manifest.samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB: {url}")
    for what, counts in (("changed", merged.changes), ("rejected", merged.rejected)):
        if counts:
            print(f"{what}: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    if merged.rejected:
        left = sum(merged.rejected.values())
        print(
            f"{left} of {merged.read} records are not in the set; each is named in {url.rstrip('/')}/{REPORT}"
        )


def add_build_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of ``segclip-shards``."""
    defaults = Options()
    build = commands.add_parser("build", help="make a shard set of captioned pictures")
    build.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="tars (SRC/{00000..00331}.tar), folders or URLs of tars, or one folder of pictures",
    )
    build.add_argument(
        "--captions",
        metavar="TABLE",
        help="captions of a folder of pictures: .csv, .tsv, .jsonl, .parquet, or Karpathy's .json; without it each "
        "is read from the .txt beside its picture",
    )
    build.add_argument(
        "--picture-column", metavar="NAME", help=f"default: the first of {', '.join(PICTURE_COLUMNS)}"
    )
    build.add_argument(
        "--caption-column", metavar="NAME", help=f"default: the first of {', '.join(CAPTION_COLUMNS)}"
    )
    build.add_argument(
        "--splits",
        default=",".join(KARPATHY_SPLITS),
        help="splits of a Karpathy .json; rows of others are not read (default: %(default)s)",
    )
    build.add_argument(
        "--per-shard",
        type=int,
        default=defaults.per_shard,
        help="most samples in a shard; whole small tars go into one together (default: %(default)s)",
    )
    build.add_argument(
        "--resize",
        type=int,
        metavar="SIDE",
        help="make pictures smaller to this short side, as JPEG; smaller ones stay",
    )
    build.add_argument(
        "--quality",
        type=int,
        default=defaults.quality,
        help="of the JPEGs --resize writes (default: %(default)s)",
    )
    build.add_argument("--superpixels", default="slic:64", help=SUPERPIXELS_HELP)
    build.add_argument(
        "--longest-caption",
        type=int,
        default=defaults.longest_caption,
        metavar="CHARACTERS",
        help="longer ones are cut after a word (default: %(default)s)",
    )
    build.add_argument(
        "--min-side",
        type=int,
        default=defaults.min_side,
        help="reject pictures with a shorter side (default: %(default)s)",
    )
    build.add_argument(
        "--unique", action="store_true", help="of pictures equal byte for byte keep the first alone"
    )
    build.set_defaults(run=_build)

    superpixels = commands.add_parser(
        "superpixels", help="write a set again with superpixel maps in its shards"
    )
    superpixels.add_argument("url", metavar="URL", help="the set, or a folder of tars")
    superpixels.add_argument("--superpixels", default="slic:64", help=SUPERPIXELS_HELP)
    superpixels.set_defaults(run=_superpixels)

    for parser in (build, superpixels):
        parser.add_argument("--out", required=True, metavar="URL", help="folder or URL to write to")
        parser.add_argument(
            "--max-pixels",
            type=int,
            default=defaults.max_pixels,
            help="reject pictures with more, unread (default: %(default)s)",
        )
        parser.add_argument(
            "--processes",
            type=int,
            default=os.cpu_count() or 1,
            help="processes that work (default: all cores)",
        )
        parser.add_argument(
            "--part", default="0/1", metavar="I/N", help="build part I of N, counted from 0; then merge"
        )
        parser.add_argument("--overwrite", action="store_true", help="begin again where another build lies")

    merge = commands.add_parser("merge", help="write the manifest of a set whose parts are all built")
    merge.add_argument("url", metavar="URL", help="where the parts were built to")
    merge.set_defaults(run=lambda arguments: _merge(arguments.url))
