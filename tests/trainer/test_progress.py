from __future__ import annotations

from pathlib import Path

import pytest

from segclip.trainer.progress import ProgressLine, duration, summary_table

METRICS = {
    "loss/total": 1.25,
    "loss/contrastive": 1.0,
    "gradient_norm": 0.5,
    "samples_per_second": 1234.5,
    "data/mb_per_second": 12.34,
    "data/wait_share": 0.031,
}


def test_a_line_says_how_the_data_fare() -> None:
    text = ProgressLine(0, 100, 8).text(50, METRICS)
    assert text.startswith("step  50/100  loss 1.2500 (contrastive 1.0000)  gradient 0.50  1,234 samples/s  ")
    assert "data 12.3 MB/s, waited 3%  " in text
    assert text.endswith("s left")


def test_what_went_wrong_is_told_only_if_anything_did() -> None:
    bad = {
        "data/skips/samples/caption_empty": 2.0,
        "data/skips/shards/tar": 17.0,
        "data/store/retries/timeout": 3.0,
    }
    assert "waited 3%, skipped samples 19, retries 3  " in ProgressLine(0, 100, 8).text(50, METRICS | bad)


def test_rates_are_since_the_last_report() -> None:
    line = ProgressLine(10, 100, 8)
    rates = line.rates(12)
    assert rates["step_seconds"] * 2 == pytest.approx(line.seconds)
    assert rates["samples_per_second"] == pytest.approx(8 / rates["step_seconds"])


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0m07s"), (75, "1m15s"), (3725, "1h02m")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_end_of_a_run_in_a_table() -> None:
    summary = {
        "step": 650,
        "seconds": 245.2,
        "samples_per_second": 391.7,
        "miou": 0.5471,
        "mlflow_run_id": "abc",
    }
    assert summary_table(summary, Path("runs/x")).splitlines() == [
        "run complete",
        "  steps       650",
        "  time        4m05s",
        "  speed       391.7 samples/s",
        "  mIoU        0.5471",
        "  export      runs/x/export",
        "  MLflow run  abc",
    ]
    # One that was complete before has no speed.
    assert len(summary_table({"step": 650, "mlflow_run_id": None}, Path("runs/x")).splitlines()) == 3
