"""One run on two hosts, each with an address of its own: by DeepSpeed's launcher without ssh, and by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segclip.rendezvous import free_port
from tests.distributed.two_hosts import Host, two_hosts
from tests.run_files import metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
Ended = tuple[int, str]


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with two_hosts() as made:
        yield made


def by_deepspeed(hosts: list[Host], number: int, port: int, folder: Path) -> list[str]:
    """The command that DeepSpeed documents for hosts without ssh between them: started on each by hand."""
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    return [
        str(BINARIES / "deepspeed"), "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number),
        "--master_addr", hosts[0].address, "--master_port", str(port),
    ]  # fmt: skip


def by_torchrun(hosts: list[Host], number: int, port: int, folder: Path) -> list[str]:
    return [
        str(BINARIES / "torchrun"), "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(number),
        "--master_addr", hosts[0].address, "--master_port", str(port),
    ]  # fmt: skip


def start(host: Host, command: list[str], *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*host.prefix, *command, str(ROOT / "trainer" / "run.py"), *map(str, arguments)],
        env={
            **os.environ,
            "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(processes: list[subprocess.Popen[str]], seconds: float = 600) -> list[Ended]:
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("launcher", [by_deepspeed, pytest.param(by_torchrun, marks=pytest.mark.exhaustive)])
def test_two_hosts_train_together(
    hosts: list[Host],
    config_file: Path,
    tmp_path: Path,
    launcher: Callable[[list[Host], int, int, Path], list[str]],
) -> None:
    port = free_port()
    arguments = ("--config", config_file, f"run_dir={tmp_path}/run", "zero.stage=2", "train.steps=3")
    both = ends(
        [
            start(host, launcher(hosts, number, port, tmp_path), *arguments)
            for number, host in enumerate(hosts)
        ]
    )
    assert [code for code, _ in both] == [0, 0], "\n".join(output[-3000:] for _, output in both)
    # One of them reports, though each is its host's first.
    assert sum(output.count("step 3/3") for _, output in both) == 1
    assert "2 x 8 samples a step" in both[0][1]
    rows = metrics(tmp_path / "run")
    assert [row["data/samples"] for row in rows] == [16, 32, 48]


def test_a_host_that_is_missing_is_named(hosts: list[Host], config_file: Path, tmp_path: Path) -> None:
    arguments = ("--config", config_file, f"run_dir={tmp_path}/run")
    command = by_deepspeed(hosts, 0, free_port(), tmp_path)
    ((code, output),) = ends([start(hosts[0], command, *arguments, SEGCLIP_MEETING_SECONDS="3")])
    assert code != 0
    assert f"error: 1 of 2 ranks did not come within 3 s: host {hosts[1].address} (rank 1)." in output


def test_hosts_with_other_settings_are_refused(hosts: list[Host], config_file: Path, tmp_path: Path) -> None:
    port = free_port()
    both = ends(
        [
            start(
                host,
                by_deepspeed(hosts, number, port, tmp_path),
                *("--config", config_file, f"run_dir={tmp_path}/run", f"seed={number}"),
            )
            for number, host in enumerate(hosts)
        ]
    )
    for code, output in both:
        assert code != 0
        assert "were started with different configurations (SHA-256 " in output
    assert not (tmp_path / "run" / "checkpoints").exists()
