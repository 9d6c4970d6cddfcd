"""What segclip-doctor finds on this machine, and what it says of things that are broken."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segclip.data_pipelines.scenes.sets import SceneSet, write_scene_shards
from segclip.trainer import doctor
from segclip.trainer.config import RunConfig, load_run_config
from segclip.trainer.doctor import check_configuration, check_environment
from segclip.trainer.doctor_cli import main
from tests.eval.published_files import write_image, write_label
from tests.exit_code import exit_code

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_scene_shards(str(folder), SceneSet(8, 3, size=48), per_shard=4, processes=1)
    return folder


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> RunConfig:
    """A run that could be started."""
    return changed(shards, tmp_path)


def changed(shards: Path, run_dir: Path, *overrides: str) -> RunConfig:
    return load_run_config(
        QUICKSTART,
        [f"data.shards={shards}", f"run_dir={run_dir}/run", "evaluation.dataset=null", *overrides],
    )


@pytest.fixture
def server() -> Iterator[str]:
    """Answers like MLflow's server to a question after its health."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


run = partial(exit_code, main)


def statuses(config: RunConfig) -> dict[str, str]:
    return {finding.name: finding.status for finding in check_configuration(config)}


def test_nothing_is_broken_where_the_tests_run(config: RunConfig) -> None:
    found = {finding.name: finding.status for finding in check_environment(config)}
    assert "broken" not in found.values()
    assert found["torch"] == found["deepspeed"] == "ok"


def test_a_run_that_could_be_started(config: RunConfig) -> None:
    assert statuses(config) == {"run_dir": "ok", "shards": "ok", "MLflow": "ok"}


def test_shards_that_are_not_there(config: RunConfig, tmp_path: Path) -> None:
    broken = changed(tmp_path / "nowhere", tmp_path)
    found = {finding.name: finding for finding in check_configuration(broken)}["shards"]
    assert found.status == "broken"
    assert str(tmp_path / "nowhere") in found.text


def test_every_one_of_several_sets_is_read(shards: Path, tmp_path: Path) -> None:
    sources = f"[{{name: a, shards: {shards}}}, {{name: b, shards: {tmp_path}/nowhere}}]"
    config = changed(shards, tmp_path, "data.shards=null", f"data.sources={sources}")
    found = [finding.status for finding in check_configuration(config) if finding.name == "shards"]
    assert found == ["ok", "broken"]


def test_a_disk_without_room(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 2**20

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Full)
    found = {finding.name: finding for finding in check_configuration(config)}["run_dir"]
    assert found.status == "broken"
    # 3.6 million weights, most of them frozen.
    assert "1 MiB free" in found.text
    assert "checkpoint.keep_last" in found.remedy


def test_checkpoints_that_are_never_deleted_need_room(shards: Path, tmp_path: Path) -> None:
    settings = ("train.steps=100", "checkpoint.every=4", "checkpoint.keep_every=6", "checkpoint.keep_last=3")
    found = {finding.name: finding for finding in check_configuration(changed(shards, tmp_path, *settings))}
    # The newest three, the one that is being written, and steps 12, 24, ..., 96.
    assert "; 12 checkpoints take at most" in found["run_dir"].text


def test_the_store_of_checkpoints(shards: Path, tmp_path: Path) -> None:
    def found() -> doctor.Finding:
        config = changed(shards, tmp_path, f"checkpoint.upload={tmp_path}/store")
        return {finding.name: finding for finding in check_configuration(config)}["checkpoint.upload"]

    assert (found().status, list((tmp_path / "store").iterdir())) == ("ok", [])
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("no folder")
    assert found().status == "broken"


def test_a_data_set_to_score_on_that_is_not_there(shards: Path, tmp_path: Path) -> None:
    config = changed(shards, tmp_path, "evaluation.dataset=scenes", f"evaluation.data_root={tmp_path}/no")
    assert statuses(config)["evaluation"] == "broken"


def test_a_server_that_answers(shards: Path, tmp_path: Path, server: str) -> None:
    assert statuses(changed(shards, tmp_path, f"tracking.uri={server}"))["MLflow"] == "ok"


def test_a_server_that_is_down_is_a_warning_without_its_password(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{unused.getsockname()[1]}")
        found = list(check_configuration(changed(shards, tmp_path)))[-1]
    assert (found.name, found.status) == ("MLflow", "warning")
    assert "does not answer" in found.text
    assert "secret" not in found.text


def test_compilers_are_needed_for_offloading_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)

    def found(*overrides: str) -> list[str]:
        config = changed(shards, tmp_path, *overrides)
        return [f.status for f in check_environment(config) if f.name in ("c++", "ninja")]

    assert found() == ["warning", "warning"]
    assert found("zero.offload_optimizer=cpu") == ["broken", "broken"]


def test_the_command_says_what_is_broken_by_its_exit_code(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(QUICKSTART), f"run_dir={tmp_path}", "evaluation.dataset=null"]
    assert run(*words, f"data.shards={shards}") == 0
    assert "all that is needed is there" in capsys.readouterr().out
    assert run("environment", *words, f"data.shards={tmp_path}/nowhere") == 1
    out = capsys.readouterr().out
    assert "BROKEN  shards:" in out
    assert "-> mend data.shards" in out
    assert "1 to mend" in out


def test_the_command_alone_checks_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert "torch:" in out
    assert "shards" not in out


def test_memory_is_printed_for_as_many_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("memory", "--config", str(QUICKSTART), "--gpus", "2") == 0
    out = capsys.readouterr().out
    assert "ZeRO stage 1, 64 samples a rank at a time" in out
    assert "2 GPUs, bf16, predicted" in out
    assert out.index("train.micro_batch") < out.index("zero.offload_optimizer")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["memory", "--config", str(QUICKSTART), "--gpus", "0"], "--gpus must be 1 or more, got 0"),
        (["memory", "--config", str(QUICKSTART), "--gpus", "3"], "128, which 3 ranks cannot share equally"),
        (["--config", "nowhere.yaml"], "no configuration file 'nowhere.yaml'"),
        (["train.steps=3"], "add --config FILE"),
    ],
)
def test_what_the_command_refuses(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert told in capsys.readouterr().err


def test_the_doctor_reads_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line; what it finds is tested with ``segclip.eval.datasets.doctor``."""
    write_image(tmp_path / "images" / "val" / "a.jpg", 2, 3)
    write_label(tmp_path / "labels" / "val" / "a.png", np.array([[0, 1, 1], [1, 1, 1]]))
    path = tmp_path / "own.yaml"
    path.write_text("classes: [cat, '[dog]', cow]\n")

    code = partial(run, "dataset", path, "--processes", 1)
    assert code("--json", str(tmp_path / "found.json")) == 0
    printed = capsys.readouterr().out
    assert "[dog]" in printed
    assert "never" in printed
    assert "warning classes: 1 of 3 never occur: cow" in printed
    assert "can be scored" in printed
    assert json.loads((tmp_path / "found.json").read_text())["check"]["images"] == 1
    path.write_text("classes: [cat]\n")
    assert code() == 1
    assert "BROKEN  label values: outside the class list" in capsys.readouterr().out
    assert code("--split", "test") == 1
    assert "split 'test' of own is missing" in capsys.readouterr().out
    assert code("--processes", "0") == 2
    assert run("dataset", "voc", "--root", tmp_path) == 2
    assert "unknown data set 'voc'" in capsys.readouterr().err
