"""``segclip-segment``: divide your own pictures among your own words."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segclip.console import EXIT_USER_ERROR, cli, one_line, progress
from segclip.eval.options import add_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from segclip.eval.segment import Segmentation, Segmenter

__all__ = ["build_parser", "main", "picture_with_legend", "run"]

_LONGEST_LEGEND = 24
"""Of more words the legend holds those alone that are in the picture."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-segment", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="picture files, folders of pictures, or patterns such as 'photos/**/*.jpg'; they stand before --classes",
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--classes",
        nargs="*",
        metavar="WORDS",
        help='such as "red circle" sand; synonyms with commas between them: "cat,kitten"',
    )
    words.add_argument("--classes-file", metavar="FILE", help="the same from a text file, one class a line")
    add_network(parser)
    parser.add_argument(
        "--out", default="segments", metavar="DIR", help="folder for what is written (default: segments)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of the same name that are in --out already"
    )
    parser.add_argument(
        "--regions", action="store_true", help="draw the regions of the network's centers, too (_regions.png)"
    )
    parser.add_argument(
        "--background",
        choices=["none", "threshold", "words"],
        default="none",
        help="what may stay unnamed: nothing; regions that fit no class well; regions that fit common "
        "background words best (default: none)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="for --background threshold (default: 0.5)"
    )
    parser.add_argument(
        "--background-words",
        nargs="+",
        metavar="WORD",
        help="for --background words, in place of the common ones",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write overlay, label map and JSON for each picture; go on past pictures that do not read."""
    from segclip.eval.picture_files import find_pictures, output_stems
    from segclip.eval.words import parse_classes, read_classes

    if arguments.classes is None:
        classes = read_classes(arguments.classes_file)
    else:
        classes = parse_classes(arguments.classes)
    found = find_pictures(arguments.images)
    folder = Path(arguments.out)
    targets = [folder / stem for stem in output_stems(found.pictures)]
    if not arguments.overwrite:
        _check_new(targets, arguments.regions)

    from segclip.eval.exports import find_export, quickstart_export
    from segclip.eval.protocol import load_protocol

    if arguments.checkpoint is None:
        checkpoint = quickstart_export()
        print(f"checkpoint {checkpoint}")
    else:
        checkpoint = find_export(arguments.checkpoint)
    named = load_protocol(arguments.protocol) if arguments.protocol else None

    from segclip.eval.segment import Segmenter
    from segclip.eval.weights import default_protocol, load_model, pick_device, weights_sha256

    loaded = load_model(checkpoint, pick_device(arguments.device))
    protocol = named or load_protocol(default_protocol(loaded.card))
    segmenter = Segmenter(
        loaded.model,
        classes,
        background=None if arguments.background == "none" else arguments.background,
        threshold=arguments.threshold,
        background_words=arguments.background_words,
        protocol=protocol,
    )
    record = {
        "checkpoint": str(loaded.path),
        "weights_sha256": weights_sha256(loaded.model),
        "protocol": protocol.name,
        "protocol_sha256": protocol.sha256,
        "background": arguments.background,
        "threshold": segmenter.threshold,
    }
    if found.others:
        names = ", ".join(each.name for each in found.others[:5]) + (" …" if len(found.others) > 5 else "")
        print(f"left out, no pictures by their ending: {len(found.others)} files ({names})")
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    # A bar for who watches and waits; a log gets a line a picture.
    shown = sys.stderr.isatty() and len(targets) > 1
    with progress(unit="images", disable=not shown) as bar:
        task = bar.add_task("segmenting", total=len(targets))
        for target, path in zip(targets, found.pictures, strict=True):
            try:
                print(_one(segmenter, path, target, record, regions=arguments.regions), flush=True)
            except ValueError as error:
                failed += 1
                print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
                if arguments.debug:
                    raise
            bar.advance(task)
    if failed and len(targets) > 1:
        print(f"{failed} of {len(targets)} pictures could not be segmented", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if failed else 0


def _outputs(target: Path, regions: bool) -> dict[str, Path]:
    """The files that are written for one picture."""
    endings = {"overlay": "_overlay.png", "labels": "_labels.png", "json": ".json"}
    if regions:
        endings["regions"] = "_regions.png"
    return {name: target.with_name(target.name + ending) for name, ending in endings.items()}


def _check_new(targets: Sequence[Path], regions: bool) -> None:
    """Refuse to write over what is there, before anything is computed.

    Raises:
        ValueError: names the first file.
    """
    there = [path for target in targets for path in _outputs(target, regions).values() if path.exists()]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ValueError(f"{there[0]} exists{more}; give another folder with --out, or --overwrite")


def _one(segmenter: Segmenter, path: Path, target: Path, record: dict[str, object], *, regions: bool) -> str:
    """Segment one file and write what comes of it; returns the line to print."""
    from segclip.eval.datasets.images import read_image
    from segclip.eval.reports.drawing import save_label_png
    from segclip.eval.reports.views import region_picture

    image_HW3 = read_image(path, upright=True)
    found = segmenter(image_HW3)
    colours, shares = segmenter.colours, found.shares()
    files = _outputs(target, regions)
    save_label_png(found.labels_HW, colours, files["labels"])
    picture_with_legend(image_HW3, found, colours).save(files["overlay"])
    if regions:
        region_picture(image_HW3, found.regions_hw, segmenter.centers, side=_side(image_HW3)).save(
            files["regions"]
        )
    pixels = found.pixels()
    content = {
        "image": str(path),
        "height": image_HW3.shape[0],
        "width": image_HW3.shape[1],
        "classes": [
            {
                "label": label,
                "name": name,
                "words": list(segmenter.words[label]),
                "pixels": pixels[name],
                "share": round(shares[name], 6),
                "colour": list(colours[label]),
            }
            for label, name in enumerate(found.names)
        ],
        **record,
    }
    files["json"].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    largest = sorted(shares.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{word} {100 * share:.0f} %" for word, share in largest if share >= 0.005)
    written = ", ".join(path.name.removeprefix(target.name) for path in files.values())
    return f"{path}: {parts} -> {target}{written}"


def _side(image_HW3: NDArray[np.uint8]) -> int:
    """Length of the longer side of what is drawn: small pictures are enlarged for the words, huge ones made smaller."""
    return min(max(max(image_HW3.shape[:2]), 640), 1600)


def picture_with_legend(
    image_HW3: NDArray[np.uint8], found: Segmentation, colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The overlay above a legend of the words with the part of the picture each got."""
    from PIL import Image

    from segclip.eval.reports.drawing import PAPER, legend, overlay

    has_background = found.names[0] == "background"
    tinted = overlay(
        image_HW3,
        found.labels_HW,
        found.names,
        colours,
        side=_side(image_HW3),
        untouched=(0,) if has_background else (),
        ignore=None,
    )
    shares = found.shares()
    order = sorted(range(len(found.names)), key=lambda label: -shares[found.names[label]])
    if len(order) > _LONGEST_LEGEND:
        order = [label for label in order if shares[found.names[label]] > 0]
    names = [f"{found.names[label]}  {100 * shares[found.names[label]]:.1f} %" for label in order]
    margin = 16
    width = max(tinted.width, 360)
    key = legend(
        names, [colours[label] for label in order], width - 2 * margin, text=min(max(width // 48, 14), 22)
    )
    page = Image.new("RGB", (width, tinted.height + key.height + 2 * margin), PAPER)
    page.paste(tinted, ((width - tinted.width) // 2, 0))
    page.paste(key, (margin, tinted.height + margin))
    return page


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
