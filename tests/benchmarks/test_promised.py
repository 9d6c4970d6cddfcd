"""What was promised, beside what was measured."""

from __future__ import annotations

import io
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import promised
from benchmarks.promised import (
    PROMISES,
    Promise,
    committed_figures,
    found,
    print_promises,
    shown,
    with_figures,
)
from benchmarks.report import Figure, leave_out, write_report

PROMISE = Promise("Kernels", "bytes moved", "bytes: * / least", "≤ 1.3")
GOOD = Figure(1.1, "times", 1.3, True)
BAD = Figure(1.4, "times", 1.3, False)


def test_of_several_figures_one_that_does_not_hold_is_shown() -> None:
    figures = {"bytes: a / least": GOOD, "bytes: b / least": BAD, "other: c / least": GOOD}
    assert found(PROMISE, figures) is BAD
    assert found(PROMISE, {"bytes: a / least": GOOD}) is GOOD
    assert found(PROMISE, {"other: c / least": GOOD}) is None


@pytest.mark.parametrize(("target", "worst"), [("≤ 9", 3.0), ("≥ 1", 1.5), ("2.4 ± 90 %", 1.5)])
def test_of_several_figures_that_hold_the_worst_is_shown(target: str, worst: float) -> None:
    figures = {f"bytes: {value} / least": Figure(value, "", 2, True) for value in (2.0, 1.5, 3.0)}
    shown_one = found(Promise("Kernels", "bytes moved", "bytes: * / least", target), figures)
    assert shown_one is not None
    assert shown_one.value == worst


def test_a_benchmark_that_was_left_out_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promised, "ROOT", tmp_path)
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    write_report(folder / "data.json", {"ratio": GOOD})
    with pytest.raises(SystemExit):
        leave_out("no GPU here", folder / "gpu_bytes.json")
    assert committed_figures() == {"data: ratio": GOOD}


def test_what_was_not_measured_says_so() -> None:
    assert shown(None) == "not measured"
    assert shown(GOOD) == "1.1 times"


def test_the_table_has_every_promise() -> None:
    written = io.StringIO()
    print_promises("promised", committed_figures(), Console(file=written, width=400))
    text = written.getvalue()
    assert all(promise.says in text and promise.target in text for promise in PROMISES)
    assert "NO" in text  # misses are shown, and there are some


def test_in_a_narrow_terminal_words_stay_whole() -> None:
    written = io.StringIO()
    print_promises("promised", committed_figures(), Console(file=written, width=80))
    words = {word for promise in PROMISES for word in promise.says.split()}
    assert words <= set(written.getvalue().split())


def test_results_of_one_script_in_several_files_are_one() -> None:
    assert "data: end to end, files: ratio" in committed_figures()
    assert "data: raw reading: ours / fastest other" in committed_figures()


def test_figures_of_one_promise_have_its_target() -> None:
    """A pattern must not take figures that were measured against something else, or against nothing."""
    for promise in PROMISES:
        own = {
            name: figure.target
            for name, figure in committed_figures().items()
            if fnmatchcase(name, promise.figure)
        }
        number = re.search(r"\d[\d.]*", promise.target)
        owed = float(number.group()) if number else None
        assert own == dict.fromkeys(own, owed), promise


def test_a_readme_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="figures: begin"):
        with_figures("# Title")
