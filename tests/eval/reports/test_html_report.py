"""The report as a file, and as a reader sees it in a browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from segclip.eval.datasets.dataset import open_dataset
from segclip.eval.evaluate import evaluate
from segclip.eval.protocol import load_protocol
from segclip.eval.reports.html_report import write_report
from segclip.eval.reports.outputs import write_outputs
from segclip.eval.reports.pictures import choose
from segclip.eval.reports.views import make_views
from segclip.eval.result import ThresholdPoint, ThresholdStudy, VocabularyStudy, VocabularyVariant
from tests.browser import open_page

SCENES = load_protocol("scenes")


def write(model, dataset, protocol, folder, count) -> Path:
    result = evaluate(model, dataset, protocol, on_error="skip", checkpoint="runs/<x>/export")
    return write_outputs(folder, model, dataset, protocol, result, count=count)["report"]


@pytest.fixture(scope="module")
def report(model, tmp_path_factory, write_voc, pictures, scene_classes) -> Path:
    """A report on five scenes, of which one is broken."""
    root = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    pairs = [(f"scene_{n}", pictures(24, 30, n), random.integers(0, 16, (24, 30))) for n in range(5)]
    write_voc(root, pairs, scene_classes)
    dataset = open_dataset("scenes", root)
    dataset.image_paths[3].write_bytes(b"broken")
    return write(model, dataset, SCENES, root / "out", 2)


@pytest.fixture(scope="module")
def many_classes(model, tmp_path_factory, write_voc, pictures) -> Path:
    """A report on 171 classes with awkward names, of which some have no pixel."""
    root = tmp_path_factory.mktemp("many")
    names = ["<script>alert(1)</script>", 'a "quoted" & named thing', *(f"class {n}" for n in range(2, 171))]
    random = np.random.default_rng(0)
    pairs = [
        (f"picture_{n}", pictures(48, 64, n), random.integers(0, 160, (6, 8)).repeat(8, 0).repeat(8, 1))
        for n in range(3)
    ]
    write_voc(root, pairs, names)
    dataset = open_dataset("scenes", root)
    protocol = SCENES.model_validate({**SCENES.model_dump(), "datasets": {"scenes": {"background": "none"}}})
    points = tuple(ThresholdPoint(each / 10, each / 20) for each in range(1, 10))
    result = dataclasses.replace(
        evaluate(model, dataset, protocol),
        thresholds=ThresholdStudy(points[4], points[2], "train", 7, points[8], points, points),
        vocabulary=VocabularyStudy(
            "own.yaml", "0" * 64, 0.5, (VocabularyVariant("synonyms 1", 0.25, {"cat": "kitten"}, (), 0.0),)
        ),
    )
    chosen = choose(dataset, result, 1)
    views = make_views(model, dataset, protocol, chosen.all())
    return write_report(root / "report.html", dataset, result, chosen, views)


def test_everything_of_the_result_is_on_the_page(report) -> None:
    text = report.read_text(encoding="utf-8")
    for wanted in (
        SCENES.sha256,
        "runs/&lt;x&gt;/export",
        "scene_3: ",
        "purple star",
        "1 images could not be read",
    ):
        assert wanted in text
    assert text.count('<section class="card">') == 2 + 2 + 2
    assert text.count("data:image/webp;base64,") == 4 * 6


def test_studies_stand_apart_from_the_figures(report, many_classes) -> None:
    text = many_classes.read_text(encoding="utf-8")
    assert "tuned on 7 images of train</td><td>0.3</td><td>15.00</td>" in text
    assert "oracle</td><td>0.9</td><td>45.00</td>" in text
    assert "cat → kitten" in text
    assert "Background thresholds" not in report.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(report, many_classes) -> None:
    for path in (report, many_classes):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*""", text)
        assert "default-src 'none'" in text
    # Names of classes come from files of others.
    assert "<script>alert" not in text
    assert len(text) < 1_500_000


def figures(page) -> list[float]:
    """IoU of the classes in the order they stand in; a dash counts as below all."""
    cells = page.locator("#class-table td:nth-child(2)").all_inner_texts()
    return [-1.0 if cell == "-" else float(cell) for cell in cells]


@pytest.mark.parametrize("dark", [False, True])
def test_a_reader_sorts_filters_and_enlarges(report, dark) -> None:
    with open_page(dark=dark) as (page, noted):
        page.goto(report.as_uri())
        names = page.locator("#class-table tbody tr td:first-child")
        before = names.all_inner_texts()
        page.get_by_role("button", name=re.compile("^IoU")).click()
        assert figures(page) == sorted(figures(page), reverse=True)
        page.get_by_role("button", name=re.compile("^IoU")).click()
        assert figures(page) == sorted(figures(page))
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("IoU")
        page.get_by_role("button", name="class").click()
        assert names.all_inner_texts() == before
        page.locator("#filter").fill("STAR")
        assert page.locator("#class-table tbody tr:visible").count() == 4
        page.locator(".pictures img").nth(1).click()
        assert page.locator("#large img").evaluate("image => image.naturalWidth") == 320
        page.keyboard.press("Escape")
        assert not page.locator("#large").is_visible()
        page.locator("#matrix").hover(position={"x": 150, "y": 150})
        assert re.fullmatch(r".+ → .+: [\d.]+ %", page.locator("#cell").inner_text())
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        # No wider than the window: nobody has to scroll sideways to read it.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
    assert not noted.errors
    assert not noted.outside


def test_many_classes_on_a_narrow_screen(many_classes) -> None:
    with open_page(width=420) as (page, noted):
        page.goto(many_classes.as_uri())
        assert page.locator("#class-table tbody tr").count() == 171
        assert page.locator("#class-table tbody tr td").first.inner_text() == "<script>alert(1)</script>"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not noted.errors
