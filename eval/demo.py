"""``segclip-demo``: a page in the browser to try your own pictures and words on."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from segclip.console import UserError, cli, one_line
from segclip.eval.options import add_network

if TYPE_CHECKING:
    from segclip.eval.protocol import Protocol
    from segclip.models.segclip import SegCLIP

__all__ = ["build_page", "build_parser", "main", "run"]

# Longer side of the picture that is shown, at least and at most: each word found in it is sent as a layer of this size.
_SMALLEST, _LARGEST = 640, 1024
_STRENGTH = 0.65
_BACKGROUNDS = {"every pixel gets a word": None, "threshold": "threshold", "other words": "words"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="segclip-demo", description=__doc__.split(": ", 1)[1])
    add_network(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine alone; 0.0.0.0 lets everybody in)",
    )
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to listen on (default: 7860)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    from segclip.eval.exports import find_export, quickstart_export
    from segclip.eval.protocol import load_protocol

    checkpoint = quickstart_export() if arguments.checkpoint is None else find_export(arguments.checkpoint)
    named = load_protocol(arguments.protocol) if arguments.protocol else None
    if not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port must lie between 1 and 65535, got {arguments.port}")
    _check_free(arguments.host, arguments.port)

    # What is uploaded is gone when the page is.
    with tempfile.TemporaryDirectory(prefix="segclip-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        _gradio()
        from segclip.eval.weights import default_protocol, load_model, pick_device

        loaded = load_model(checkpoint, pick_device(arguments.device))
        page = build_page(loaded.model, named or load_protocol(default_protocol(loaded.card)))
        _, address, _ = page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=False,
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size="100mb",
        )
        print(f"segclip-demo of {checkpoint}: open {address} (stop with Ctrl-C)", flush=True)
        page.block_thread()
    return 0


def _check_free(host: str, port: int) -> None:
    """Find out now, rather than after everything is loaded.

    Raises:
        UserError: nothing can be served there.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another --port or --host"
        ) from None


def _gradio() -> Any:
    """The module, told to report nothing to anybody.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError:
        raise UserError(
            "segclip-demo needs Gradio: make setup, or pip install -e '.[demo]' in the checkout"
        ) from None
    return gradio


def build_page(model: SegCLIP, protocol: Protocol) -> Any:
    """The page as ``gradio.Blocks``.

    Args:
        model: in evaluation mode.
        protocol: sizes, templates and score rule.
    """
    gr = _gradio()
    with gr.Blocks(title="SegCLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# SegCLIP\nDivide a picture among your own words. "
            "Point at a word below the result to see its region alone."
        )
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(
                    label="picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=300,
                )
                words = gr.Textbox(
                    label="words",
                    info="One a line; synonyms with commas between them, such as: cat, kitten",
                    lines=4,
                    elem_id="words",
                )
                background = gr.Radio(list(_BACKGROUNDS), value=next(iter(_BACKGROUNDS)), label="background")
                threshold = gr.Slider(
                    0.05, 0.95, 0.5, step=0.05, label="threshold", visible=False, elem_id="threshold",
                    info="Regions whose best word scores less stay unnamed.",
                )  # fmt: skip
                others = gr.Textbox(
                    label="background words",
                    info="With commas between them; empty for common ones: sky, wall, floor, …",
                    visible=False,
                    elem_id="others",
                )
                button = gr.Button("Segment", variant="primary")
            with gr.Column(scale=3):
                result = gr.AnnotatedImage(label="result", elem_id="result")
                status = gr.Textbox(show_label=False, interactive=False, elem_id="status", lines=1)

        def divide(given: Any, lines: Any, choice: Any, lowest: Any, unwanted: Any) -> tuple[Any, str]:
            try:
                shown, colours, told = _divide(
                    model, protocol, _uploaded(given), lines, choice, lowest, unwanted
                )
            except ValueError as error:
                return gr.AnnotatedImage(value=None), f"error: {one_line(error)}"
            return gr.AnnotatedImage(value=shown, color_map=colours), told

        background.change(
            lambda choice: (
                gr.update(visible=choice == "threshold"),
                gr.update(visible=choice == "other words"),
            ),
            background,
            [threshold, others],
            show_progress="hidden",
        )
        # The file as it was uploaded: Gradio's own reading turns a broken picture into an error of its own.
        gr.on(
            [button.click, background.input, threshold.release, others.submit],
            divide,
            [picture, words, background, threshold, others],
            [result, status],
            preprocess=False,
            api_name="segment",
        )
    return page


def _uploaded(given: Any) -> Path:
    """The file that was uploaded; Gradio has refused all others.

    Raises:
        ValueError: none was.
    """
    if not isinstance(given, dict) or not given.get("path"):
        raise ValueError("no picture yet: drop one on the left")
    return Path(given["path"])


def _divide(
    model: SegCLIP, protocol: Protocol, path: Path, lines: Any, choice: Any, lowest: Any, unwanted: Any
) -> tuple[Any, dict[str, str], str]:
    """The picture with a layer for each word found in it, the words' colours, and a line about it.

    Raises:
        ValueError: the picture does not read, or the words and options make no sense.
    """
    import numpy as np

    from segclip.eval.datasets.images import read_image
    from segclip.eval.reports.drawing import enlarge
    from segclip.eval.segment import Segmenter
    from segclip.eval.words import parse_classes

    typed = [line for line in str(lines or "").splitlines() if line.strip()]
    if not typed:
        raise ValueError("no words yet: write one a line")
    if choice not in _BACKGROUNDS:
        raise ValueError(f"background must be one of {', '.join(_BACKGROUNDS)}, got {choice!r}")
    background: Any = _BACKGROUNDS[choice]
    asked = [word.strip() for word in str(unwanted or "").split(",") if word.strip()]
    segmenter = Segmenter(
        model,
        parse_classes(typed),
        background=background,
        threshold=float(lowest) if background == "threshold" else None,
        background_words=asked if background == "words" and asked else None,
        protocol=protocol,
    )
    try:
        image_HW3 = read_image(path, upright=True)
    except ValueError as error:
        # The name it has here means nothing to who uploaded it.
        raise ValueError(str(error).replace(str(path), "the picture")) from None
    found = segmenter(image_HW3)
    shown = np.asarray(enlarge(image_HW3, min(max(max(image_HW3.shape[:2]), _SMALLEST), _LARGEST)))
    rows = np.arange(shown.shape[0]) * image_HW3.shape[0] // shown.shape[0]
    columns = np.arange(shown.shape[1]) * image_HW3.shape[1] // shown.shape[1]
    labels = found.labels_HW[rows[:, None], columns]
    shares = found.shares()
    first = 1 if background else 0
    layers, colours = [], {}
    for label in sorted(range(first, len(found.names)), key=lambda label: -shares[found.names[label]]):
        name = found.names[label]
        if shares[name] > 0:
            title = f"{name} {100 * shares[name]:.1f} %"
            layers.append((_STRENGTH * (labels == label), title))
            colours[title] = "#{:02x}{:02x}{:02x}".format(*segmenter.colours[label])
    absent = [name for name in found.names[first:] if shares[name] == 0]
    told = f"{image_HW3.shape[1]} x {image_HW3.shape[0]} pixels"
    if background:
        told += f"; background {100 * shares['background']:.1f} %"
    if absent:
        told += f"; not found: {', '.join(absent)}"
    return (shown, layers), colours, told


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    cli(run, build_parser(), argv)


if __name__ == "__main__":
    main()
