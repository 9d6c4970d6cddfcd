"""``segclip-shards``: build, write, show, verify and upload shard sets.

What takes long to import is imported by the command that needs it (see ``building.cli``).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from segclip.console import cli, progress
from segclip.data_pipelines.building.cli import add_build_commands

if TYPE_CHECKING:
    from segclip.data_pipelines.scenes.sets import SceneSet

__all__ = ["build_parser", "main"]

SIZE_HELP = "side of a picture in pixels (default: 96)"


def _scene_set(arguments: argparse.Namespace) -> SceneSet:
    from segclip.data_pipelines.scenes.sets import SceneSet

    scenes = SceneSet(arguments.count, arguments.seed)
    return scenes if arguments.size is None else replace(scenes, size=arguments.size)


def _scenes(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.scenes.sets import SCENE_SUPERPIXELS, write_scene_shards

    scenes = _scene_set(arguments)
    if arguments.segments is not None:
        other = SCENE_SUPERPIXELS.model_copy(update={"segments": arguments.segments})
        scenes = replace(scenes, superpixels=other if arguments.segments else None)
    with progress() as bar:
        task = bar.add_task("scenes", total=arguments.count)
        manifest = write_scene_shards(
            arguments.out,
            scenes,
            per_shard=arguments.per_shard,
            processes=arguments.processes,
            report=lambda entry: bar.advance(task, entry.count),
        )
    size = sum(shard.bytes for shard in manifest.shards)
    print(f"{manifest.samples} scenes in {len(manifest.shards)} shards, {size / 1e6:.1f} MB: {arguments.out}")


def _scenes_voc(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.scenes.sets import write_scene_voc

    with progress() as bar:
        task = bar.add_task("scenes", total=arguments.count)
        folder = write_scene_voc(
            arguments.out,
            _scene_set(arguments),
            lambda: bar.advance(task),
        )
    print(f"{arguments.count} scenes with label maps: {folder}")


def _show(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.contact_sheet import contact_sheet

    captions = contact_sheet(
        arguments.url, arguments.out, count=arguments.count, outlines=arguments.superpixels
    )
    print(f"{len(captions)} samples: {arguments.out}")


def _stats(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.manifest import read_manifest
    from segclip.data_pipelines.stats import set_stats, stats_table

    with progress() as bar:
        total = read_manifest(arguments.url).samples if arguments.shards is None else None
        task = bar.add_task("samples", total=total)
        stats = set_stats(
            arguments.url, shards=arguments.shards, report=lambda samples: bar.advance(task, samples)
        )
    Console().print(stats_table(stats))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(stats), indent=1) + "\n", encoding="utf-8")


def _verify(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.manifest import read_manifest
    from segclip.data_pipelines.verify import verify_set

    with progress() as bar:
        task = bar.add_task("samples", total=read_manifest(arguments.url).samples)
        manifest = verify_set(arguments.url, lambda entry: bar.advance(task, entry.count))
    print(
        f"{len(manifest.shards)} shards with {manifest.samples} samples match their manifest: {arguments.url}"
    )


def _upload(arguments: argparse.Namespace) -> None:
    from segclip.data_pipelines.storage.store import upload

    with progress() as bar:
        total = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
        task = bar.add_task("bytes", total=total)
        files = upload(arguments.folder, arguments.url, lambda entry: bar.advance(task, entry.size))
    print(f"{files} files uploaded: {arguments.url}")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``segclip-shards``."""
    parser = argparse.ArgumentParser(
        prog="segclip-shards", description=__doc__.partition(": ")[2].partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)

    add_build_commands(commands)
    scenes = commands.add_parser("scenes", help="write training shards of generated captioned scenes")
    scenes.add_argument("--out", required=True, metavar="URL", help="folder or URL to write to")
    scenes.add_argument("--count", type=int, required=True, help="number of scenes")
    scenes.add_argument("--seed", type=int, default=0, help="seed; scene i of a seed is always the same")
    scenes.add_argument("--size", type=int, metavar="SIDE", help=SIZE_HELP)
    scenes.add_argument("--per-shard", type=int, default=1000, help="scenes in each shard")
    scenes.add_argument("--segments", type=int, help="superpixels (default: 12); 0 stores none")
    scenes.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that draw")
    scenes.set_defaults(run=_scenes)

    voc = commands.add_parser("scenes-voc", help="write scenes with label maps in the PASCAL VOC layout")
    voc.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder that gets VOCdevkit/VOC2012"
    )
    voc.add_argument("--count", type=int, default=500, help="number of scenes")
    voc.add_argument("--seed", type=int, required=True, help="seed; take another than for training")
    voc.add_argument("--size", type=int, metavar="SIDE", help=SIZE_HELP)
    voc.set_defaults(run=_scenes_voc)

    show = commands.add_parser("show", help="write a page of samples with their captions")
    show.add_argument("url", metavar="URL", help="the set")
    show.add_argument("--out", type=Path, default=Path("samples.png"), metavar="PNG", help="file to write")
    show.add_argument("--count", type=int, default=24, help="samples on the page")
    show.add_argument("--superpixels", action="store_true", help="draw the borders of the superpixels")
    show.set_defaults(run=_show)

    stats = commands.add_parser("stats", help="sizes, lengths of captions, numbers of superpixels")
    stats.add_argument("url", metavar="URL", help="the set")
    stats.add_argument("--shards", type=int, metavar="N", help="read only N shards, spread evenly")
    stats.add_argument("--json", type=Path, metavar="PATH", help="also write them as JSON")
    stats.set_defaults(run=_stats)

    verify = commands.add_parser("verify", help="compare every shard of a set with its manifest")
    verify.add_argument("url", metavar="URL", help="the set")
    verify.set_defaults(run=_verify)

    send = commands.add_parser("upload", help="copy a folder of shards to a URL")
    send.add_argument("folder", type=Path, metavar="FOLDER", help="the folder")
    send.add_argument("url", metavar="URL", help="where to, such as s3://bucket/prefix")
    send.set_defaults(run=_upload)
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``segclip-shards``."""
    cli(lambda arguments: arguments.run(arguments), build_parser(), argv)


if __name__ == "__main__":
    main()
