"""``segclip-export``: turn any checkpoint into files that others open."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segclip.console import cli, warn

if TYPE_CHECKING:
    from segclip.models.segclip import SegCLIP

__all__ = ["build_parser", "main", "open_checkpoint", "run"]

FORMATS = ("segclip", "original", "torch-export")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-export", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="export folder, run folder, training checkpoint (RUN/checkpoints/step-...), or a file of the original "
        "code (segclip.bin, pytorch_model.bin.N)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="segclip",
        help="segclip: model.safetensors, config.json and a model card; original: segclip.bin, which the original "
        "code loads; torch-export: segclip.pt2, a program from image to regions (default: segclip)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="torch-export: height and width of the images, or one number for both (default: the training size)",
    )
    parser.add_argument(
        "--input",
        choices=["uint8", "float32"],
        default="uint8",
        help="torch-export: images as pixels, normalised by the program, or already normalised (default: uint8)",
    )
    return parser


def open_checkpoint(path: str | Path) -> SegCLIP:
    """A network from anything that holds one: what ``segclip.load`` takes, a run's folder, a training checkpoint.

    Raises:
        ValueError: nothing there that can be opened.
    """
    from segclip.eval.exports import find_export, is_training_checkpoint

    found = find_export(path)
    if is_training_checkpoint(found):
        from segclip.trainer.config import load_run_config
        from segclip.trainer.export import load_training_checkpoint

        return load_training_checkpoint(found, load_run_config(found / "config.yaml"))

    from segclip.models.checkpoint import load

    return load(found)


def run(arguments: argparse.Namespace) -> int:
    """Write the files and say which."""
    size = arguments.size
    if arguments.format != "torch-export" and (size is not None or arguments.input != "uint8"):
        raise ValueError("--size and --input go with --format torch-export alone")
    if size is not None and len(size) > 2:
        raise ValueError(f"--size takes one number or two (height and width), got {len(size)}")
    folder = Path(arguments.out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder")

    model = open_checkpoint(arguments.checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.format == "segclip":
        from segclip.models.export_folder import export

        print(f"wrote {export(model, folder)}")
    elif arguments.format == "original":
        from segclip.models.files import RELEASED_FILE
        from segclip.models.released import export_released

        unlike = export_released(model, folder / RELEASED_FILE)
        print(f"wrote {folder / RELEASED_FILE}")
        if unlike:
            warn(f"the original code will not compute the same with it: {'; '.join(unlike)}")
    else:
        import torch

        from segclip.models.files import PROGRAM_FILE
        from segclip.models.program import export_program

        dtype = torch.uint8 if arguments.input == "uint8" else torch.float32
        export_program(model, folder / PROGRAM_FILE, None if size is None else (size[0], size[-1]), dtype)
        print(f"wrote {folder / PROGRAM_FILE}")
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
