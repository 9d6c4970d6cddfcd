"""``segclip-segment``: divide your own pictures among your own words."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segclip.console import EXIT_USER_ERROR, cli, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from segclip.eval.segment import Segmentation, Segmenter

__all__ = ["build_parser", "main", "picture_with_legend", "run"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-segment", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files; they stand before --classes"
    )
    parser.add_argument(
        "--classes", nargs="*", required=True, metavar="WORDS", help='such as "red circle" sand'
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="export folder, run folder or segclip.bin (default: what make quickstart trained here)",
    )
    parser.add_argument(
        "--out", default="segments", metavar="DIR", help="folder for what is written (default: segments)"
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
        "--protocol",
        metavar="NAME",
        help="name or YAML file (default: the one the checkpoint was exported with, else photo)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write overlay, label map and JSON for each picture; go on past pictures that do not read."""
    from segclip.eval.words import check_classes

    check_classes(arguments.classes)
    missing = [name for name in arguments.images if not Path(name).exists()]
    if missing:
        raise ValueError(f"no such image file: {missing[0]}; give picture files first, then --classes")

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
        arguments.classes,
        background=None if arguments.background == "none" else arguments.background,
        threshold=arguments.threshold,
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
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for stem, name in zip(_stems(arguments.images), arguments.images, strict=True):
        try:
            shares = _one(segmenter, Path(name), folder / stem, record)
        except ValueError as error:
            failed += 1
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            if arguments.debug:
                raise
            continue
        parts = ", ".join(f"{word} {100 * share:.0f} %" for word, share in shares.items() if share >= 0.005)
        print(f"{name}: {parts} -> {folder / stem}_overlay.png, _labels.png, .json")
    return EXIT_USER_ERROR if failed else 0


def _one(segmenter: Segmenter, path: Path, target: Path, record: dict[str, object]) -> dict[str, float]:
    """Segment one file and write what comes of it; the shares of the words, largest first."""
    from segclip.eval.drawing import save_label_png
    from segclip.eval.images import read_image

    image_HW3 = read_image(path, upright=True)
    found = segmenter(image_HW3)
    colours = segmenter.colours
    save_label_png(found.labels_HW, colours, target.with_name(target.name + "_labels.png"))
    picture_with_legend(image_HW3, found, colours).save(target.with_name(target.name + "_overlay.png"))
    shares = found.shares()
    content = {
        "image": str(path),
        "height": image_HW3.shape[0],
        "width": image_HW3.shape[1],
        "classes": [
            {
                "label": label,
                "name": name,
                "pixels": int((found.labels_HW == label).sum()),
                "share": round(shares[name], 6),
                "colour": list(colours[label]),
            }
            for label, name in enumerate(found.names)
        ],
        **record,
    }
    target.with_name(target.name + ".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def picture_with_legend(
    image_HW3: NDArray[np.uint8], found: Segmentation, colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The overlay above a legend of the words with the part of the picture each got."""
    from PIL import Image

    from segclip.eval.drawing import PAPER, legend, overlay

    side = min(max(max(image_HW3.shape[:2]), 640), 1600)
    has_background = found.names[0] == "background"
    tinted = overlay(
        image_HW3, found.labels_HW, found.names, colours, side=side, untouched=(0,) if has_background else ()
    )
    shares = found.shares()
    order = sorted(range(len(found.names)), key=lambda label: -shares[found.names[label]])
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


def _stems(names: Sequence[str]) -> list[str]:
    """File names without ending, numbered where two pictures share one."""
    stems: list[str] = []
    for name in names:
        stem, number = Path(name).stem, 2
        while stem in stems:
            stem, number = f"{Path(name).stem}-{number}", number + 1
        stems.append(stem)
    return stems


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
