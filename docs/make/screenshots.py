"""Pictures for the documentation, taken of real pages in a browser without a window.

    python -m docs.make.screenshots --run runs/quickstart/train --data-root runs/quickstart/data/eval

Of a finished run: its report, the page of ``segclip-demo`` with a scene, and what MLflow shows of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from playwright.sync_api import Page, expect

from benchmarks.mlflow_server import mlflow_server
from segclip.console import UserError, cli
from segclip.rendezvous import free_port
from tests.browser import MISSING, open_page, program

IMAGES = Path(__file__).parents[1] / "images"
# A server that starts beside other work takes its time.
expect.set_options(timeout=60_000)
WORDS = ("red bar", "yellow circle", "white circle", "grass", "sand")


@contextmanager
def serving(*command: object, port: int, seconds: float = 120) -> Iterator[str]:
    """Address of a server that a command starts, once it answers.

    Raises:
        UserError: it ended, or did not answer in time.
    """
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([str(each) for each in command], stdout=log, stderr=log, env=environment) as server,
    ):
        try:
            until = time.monotonic() + seconds
            while True:
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    if server.poll() is not None or time.monotonic() > until:
                        log.seek(0)
                        raise UserError(f"no server at {address}: {log.read().decode()[-2000:]}") from None
                    time.sleep(0.3)
            yield address
        finally:
            server.terminate()


def report_picture(report: Path, target: Path) -> Path:
    """The upper part of a report."""
    with open_page(width=1200, height=900) as (page, _):
        page.goto(report.resolve().as_uri())
        page.screenshot(path=target)
    return target


def demo_picture(checkpoint: Path, picture: Path, words: tuple[str, ...], target: Path) -> Path:
    """The page of ``segclip-demo`` with a picture that is divided among words."""
    port = free_port()
    command = (sys.executable, "-m", "segclip.eval.demo", "--checkpoint", checkpoint, "--port", port)
    with serving(*command, port=port) as address, open_page(width=1280, height=960) as (page, _):
        page.goto(address)
        with page.expect_response(re.compile("/upload")):
            page.locator("input[type=file]").first.set_input_files(picture)
        page.locator("#words textarea").fill("\n".join(words))
        page.get_by_role("button", name="Segment").click()
        page.locator("#result .legend-item").first.wait_for()
        page.wait_for_function("[...document.images].every(each => each.complete && each.naturalWidth)")
        page.screenshot(path=target)
    return target


def mlflow_pictures(store: str, run_id: str, folder: Path, *, metric: str, parameter: str) -> list[Path]:
    """Parameters, plots of metrics and the pictures of the regions, as MLflow's own page shows them.

    Args:
        store: ``sqlite:///…``.
        run_id: of a training.
        folder: for the pictures.
        metric, parameter: names that must be on the page.

    Raises:
        AssertionError: something is not there.
    """
    from mlflow import MlflowClient

    client = MlflowClient(store)
    run = client.get_run(run_id)
    drawn = [each.path for each in client.list_artifacts(run_id, "assignments") if each.path.endswith(".png")]
    assert drawn, "the run has no pictures of regions"
    taken = [folder / f"mlflow-{name}.png" for name in ("overview", "metrics", "regions")]
    with (
        tempfile.TemporaryDirectory() as scratch,
        mlflow_server(Path(scratch), store=store) as address,
        open_page(width=1440, height=1300) as (page, noted),
    ):
        place = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run_id}"
        page.goto(place)
        expect(page.get_by_text(parameter, exact=True).first).to_be_visible()
        expect(page.get_by_text(run.data.params[parameter], exact=True).first).to_be_visible()
        _plain_screenshot(page, taken[0])
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(f"{place}/model-metrics")
        # A training has some fifty metrics; those of one kind fit on a screen. The field takes regular expressions.
        page.get_by_placeholder("Search metric charts").fill(f"^{metric.partition('/')[0]}/")
        expect(page.get_by_text(f"({metric})").first).to_be_visible()
        # Each plot is drawn by Plotly, as SVG.
        expect(page.locator(".js-plotly-plot svg .scatterlayer path.js-line").first).to_be_visible()
        _plain_screenshot(page, taken[1])
        page.goto(f"{place}/artifacts/{drawn[-1]}")
        image = page.locator("img[src^='blob:']").first
        expect(image).to_be_visible()
        assert image.evaluate("each => each.naturalWidth") > 100
        _plain_screenshot(page, taken[2])
    assert not noted.outside, noted.outside
    return taken


def _plain_screenshot(page: Page, target: Path) -> None:
    """Without what is laid beside the page and without this machine's paths."""
    for button in page.get_by_role("button", name="Close", exact=True).all():
        button.click()
    for text in page.get_by_text(re.compile("^Path:|file:///")).all():
        text.evaluate("each => each.style.visibility = 'hidden'")
    # What moves comes to rest. The page asks its server again and again, so there is no idle network to wait for.
    page.wait_for_timeout(1500)
    page.screenshot(path=target)


def run(arguments: argparse.Namespace) -> int:
    """Take them all."""
    if program() is None:
        raise UserError(MISSING)
    folder, data = Path(arguments.run), Path(arguments.data_root)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scene = next(iter(sorted(data.glob("VOCdevkit/VOC2012/JPEGImages/*.jpg"))[arguments.scene :]), None)
    if scene is None:
        raise ValueError(f"no scene number {arguments.scene} under {data}")
    target = Path(arguments.out)
    target.mkdir(parents=True, exist_ok=True)
    taken = [
        report_picture(folder / "evaluation" / "report.html", target / "report.png"),
        demo_picture(folder / "export", scene, WORDS, target / "demo.png"),
        *mlflow_pictures(
            f"sqlite:///{(folder / 'mlflow.db').resolve()}",
            summary["mlflow_run_id"],
            target,
            metric="loss/total",
            parameter="train.global_batch",
        ),
    ]
    for path in taken:
        print(f"wrote {path}")
    return 0


def main() -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.make.screenshots", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--run", default="runs/quickstart/train", help="folder of a finished run")
    parser.add_argument("--data-root", default="runs/quickstart/data/eval", help="scenes")
    parser.add_argument("--scene", type=int, default=43, help="number of the scene on the demo's page")
    parser.add_argument("--out", default=str(IMAGES), help="folder for the pictures")
    cli(run, parser)


if __name__ == "__main__":
    main()
