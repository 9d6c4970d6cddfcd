"""Evaluation on real ranks: the same numbers as alone, and an end for all when one fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segclip.eval import run
from segclip.eval.protocol import load_protocol
from segclip.eval.ranks import _own_device
from segclip.rendezvous import free_port
from tests.ranks import start

pytestmark = pytest.mark.slow
SCRIPT = Path(run.__file__)
# These say where and how fast; everything else is the same on any number of ranks.
OF_THE_RUN = ("ranks", "command", "seconds", "images_per_second")


@pytest.fixture
def voc(tmp_path, write_voc, pictures) -> Path:
    """Seven images with background, five in the split `val`, two in `train`; a protocol with a threshold for them."""
    random = np.random.default_rng(0)
    pairs = []
    for number, (height, width) in enumerate(
        [(24, 24), (30, 41), (48, 24), (24, 26), (25, 60), (24, 24), (30, 30)]
    ):
        label = np.kron(random.integers(0, 21, (height // 6 + 1, width // 6 + 1)), np.ones((6, 6), int))
        label = label[:height, :width]
        label[:2] = 255
        pairs.append((f"image_{number}", pictures(height, width, number), label))
    folder = write_voc(tmp_path / "voc", pairs)
    splits = folder / "ImageSets" / "Segmentation"
    for name, numbers in (("val", range(5)), ("train", (5, 6))):
        (splits / f"{name}.txt").write_text("".join(f"image_{number}\n" for number in numbers))
    tree = load_protocol("scenes").model_dump(mode="json")
    tree |= {"name": "own", "short_side": 24, "stride": 12}
    tree["datasets"] = {"voc21": {"background": "threshold", "threshold": 0.3}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def command(checkpoint: Path, voc: Path, out: str, *more: object) -> list[object]:
    return [
        "--checkpoint", checkpoint, "--dataset", "voc21", "--data-root", voc / "voc", "--protocol", voc / "own.yaml",
        "--out", voc / out, "--pictures", 1, "--bootstrap", 100, "--device", "cpu", *more,
    ]  # fmt: skip


def alone(capsys, arguments: list[object]) -> str:
    with pytest.raises(SystemExit) as end:
        run.main([str(each) for each in arguments])
    assert not end.value.code
    return str(capsys.readouterr().out)


def result(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "result.json").read_text())
    return {field: value for field, value in content.items() if field not in OF_THE_RUN}


def test_two_ranks_are_one(checkpoint, voc, capsys) -> None:
    """All that can be asked for, five images on two ranks; the scripts of launchers are given --local_rank."""
    asked = ("--thresholds", "--tune-split", "train", "--vocabulary")
    told = alone(capsys, command(checkpoint, voc, "alone", *asked))
    group = start(SCRIPT, "--local_rank=0", *command(checkpoint, voc, "two", *asked))
    done = group.finish(120)
    assert done.returncode == 0, done.stdout
    one, two = result(voc / "alone"), result(voc / "two")
    assert one == two
    assert json.loads((voc / "two" / "result.json").read_text())["ranks"] == 2
    assert one["images"] == 5
    assert one["thresholds"]["tune_images"] == 2
    assert len(one["vocabulary"]["variants"]) == 4
    assert {each.name for each in (voc / "alone").iterdir()} == {
        each.name for each in (voc / "two").iterdir()
    }
    # Said once, and by both alike.
    for line in (line for line in told.splitlines() if line.startswith(("background threshold", "synonyms"))):
        assert done.stdout.count(line) == 1, line


def test_fewer_images_than_ranks(checkpoint, voc, capsys) -> None:
    alone(capsys, command(checkpoint, voc, "alone", "--limit", 2))
    group = start(SCRIPT, *command(checkpoint, voc, "three", "--limit", 2), ranks=3)
    done = group.finish(120)
    assert done.returncode == 0, done.stdout
    assert result(voc / "alone") == result(voc / "three")


def test_a_broken_image_on_one_rank(checkpoint, voc, capsys) -> None:
    (voc / "voc/VOCdevkit/VOC2012/JPEGImages/image_3.jpg").write_bytes(b"broken")
    group = start(SCRIPT, *command(checkpoint, voc, "stopped"))
    assert group.wait(60)
    assert group.codes() == [2, 2]
    errors = [line for line in group.text().splitlines() if "error" in line]
    assert len(errors) == 1
    assert re.fullmatch(r"error: rank 1: .*image_3.jpg does not decode as an image \(.*\)", errors[0])
    assert not (voc / "stopped" / "result.json").exists()
    alone(capsys, command(checkpoint, voc, "alone", "--skip-broken"))
    done = start(SCRIPT, *command(checkpoint, voc, "skipped", "--skip-broken")).finish(120)
    assert done.returncode == 0, done.stdout
    assert result(voc / "alone") == result(voc / "skipped")
    assert result(voc / "alone")["images"] == 4
    assert "left out: image_3" in done.stdout


@pytest.mark.parametrize(
    ("how", "codes", "said"),
    [
        ("user", [2, 2], ["error: rank 1: image b.jpg does not decode"]),
        ("fault", [69, 1], ["KeyError: 'a fault of ours'", "[rank 0] stopped: another rank has ended"]),
        ("killed", [69, -9], ["[rank 0] stopped: another rank has ended"]),
    ],
)
def test_one_that_fails_ends_all(how, codes, said) -> None:
    begin = time.monotonic()
    group = start(Path(__file__).with_name("failing_rank.py"), how)
    assert group.wait(40), group.text()
    assert time.monotonic() - begin < 40
    assert group.codes() == codes, group.text()
    for line in said:
        assert group.text().count(line) == 1, group.text()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "launcher", [("torchrun", "--nproc-per-node", "2"), ("deepspeed", "--num_gpus", "2")]
)
def test_real_launchers(launcher, checkpoint, voc, capsys) -> None:
    """What ranks without a launcher do is the same under one; DeepSpeed's calls processes GPUs."""
    alone(capsys, command(checkpoint, voc, "alone"))
    port = f"--master{'_' if launcher[0] == 'deepspeed' else '-'}port={free_port()}"
    program = Path(sys.executable).with_name(launcher[0])
    words = [program, *launcher[1:], port, SCRIPT, *command(checkpoint, voc, "out")]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(voc / "alone") == result(voc / "out")
    assert json.loads((voc / "out" / "result.json").read_text())["ranks"] == 2


def test_what_is_wrong_is_said_once(checkpoint, voc) -> None:
    group = start(SCRIPT, *command(checkpoint, voc, "out", "--split", "tset"))
    assert group.wait(60)
    assert group.codes() == [2, 2]
    assert group.text().count("error: ") == 1, group.text()
    assert "tset.txt is missing" in group.text()


def test_a_rank_that_does_not_come(checkpoint, voc) -> None:
    group = start(SCRIPT, *command(checkpoint, voc, "out"), environment={"SEGCLIP_MEETING_SECONDS": "2"})
    group.ranks[1].kill()
    assert group.wait(60)
    assert group.codes()[0] == 2
    assert "error: 1 of 2 ranks did not come within 2 s" in group.text()


def test_devices_of_ranks() -> None:
    with pytest.raises(
        ValueError, match="--device cuda:0 names one device, but 2 processes run on this host"
    ):
        _own_device("cuda:0", 0, 2)
    assert _own_device("cpu", 1, 2).type == "cpu"
