"""Ranks that meet, do not come, or differ; the ranks are threads, which the store cannot tell from processes."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest

from segclip.console import UserError
from segclip.rendezvous import Greeting, Place, compare, free_port, hosts_of_launcher, interface_towards, meet

OWN = Greeting(0, "a", {"torch": "2.11", "deepspeed": "0.19.8"}, "0" * 64, 1000.0)


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    return port


def together(greetings: list[Greeting], world_size: int, seconds: float = 20.0) -> list[str | None]:
    """What each rank is told; None of one that has met the others."""
    told: dict[int, str | None] = {}

    def come(greeting: Greeting) -> None:
        try:
            meet(greeting, world_size=world_size, local_world_size=2, seconds=seconds)
            told[greeting.rank] = None
        except UserError as error:
            told[greeting.rank] = str(error)

    threads = [threading.Thread(target=come, args=(greeting,)) for greeting in greetings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[greeting.rank] for greeting in greetings]


def ranks(count: int) -> list[Greeting]:
    return [replace(OWN, rank=rank, host="ab"[rank // 2]) for rank in range(count)]


def test_four_ranks_meet() -> None:
    assert together(ranks(4), 4) == [None] * 4


def test_a_host_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    told = together(ranks(2), 4, seconds=2)
    assert time.monotonic() - begin < 10
    assert told[0] == told[1]
    assert told[0] is not None
    assert told[0].startswith(
        "2 of 4 ranks did not come within 2 s: host number 1 (ranks 2, 3). Is the run started"
    )
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[07-08]")
    monkeypatch.setenv("SLURM_NNODES", "2")
    told = together(ranks(3), 4, seconds=1)
    assert told[0] is not None
    assert "1 of 4 ranks did not come within 1 s: host gpu08 (rank 3)." in told[0]


def test_without_the_first_rank_the_others_say_whom_they_cannot_reach(address: int) -> None:
    (told,) = together([ranks(3)[2]], 4, seconds=1)
    assert told is not None
    assert f"b (rank 2) cannot reach the first rank at 127.0.0.1:{address} within 1 s" in told


def test_a_port_that_is_taken(address: int) -> None:
    with socket.socket() as other:
        other.bind(("", address))
        other.listen()
        (told,) = together(ranks(1), 1, seconds=2)
    assert told is not None
    assert f"cannot listen on port {address}" in told
    assert "--master_port" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"versions": {"torch": "2.10", "deepspeed": "0.19.8"}}, "different software: torch 2.11 and 2.10"),
        ({"versions": {"torch": "2.11"}}, "different software: deepspeed 0.19.8 and None"),
        (
            {"config": "1" * 64},
            "started with different configurations (SHA-256 000000000000 and 111111111111)",
        ),
        ({"clock": 1100.0}, "100 s apart, more than 60: synchronise them"),
    ],
)
def test_what_must_be_equal(change: dict[str, object], told: str) -> None:
    other = replace(OWN, rank=1, host="b", **change)  # type: ignore[arg-type]
    problem = compare([OWN, other])
    assert problem is not None
    assert "a (rank 0) and b (rank 1)" in problem
    assert told in problem
    assert compare([OWN, replace(OWN, rank=1, clock=1050.0)]) is None
    assert together([OWN, other], 2) == [problem, problem]


def test_own_greeting() -> None:
    one, other = Greeting.own(0, "seed: 0"), Greeting.own(1, "seed: 1")
    assert one.config != other.config
    assert one.versions["torch"].startswith("2.")
    assert one.versions["python"].count(".") == 2
    assert compare([one, Greeting.own(1, "seed: 0")]) is None


def test_names_of_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosts_of_launcher() == []
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-03,07],cpu1,x[9-10]-ib")
    monkeypatch.setenv("SLURM_NNODES", "7")
    assert hosts_of_launcher() == ["gpu01", "gpu02", "gpu03", "gpu07", "cpu1", "x9-ib", "x10-ib"]


def test_the_interface_towards_an_address() -> None:
    assert interface_towards("127.0.0.1", 1) == "lo"
    assert interface_towards("no.such.host.invalid", 1) is None


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 1, 4, 2)),  # torchrun
        ({"LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Place(3, 1, 4, 2)),  # deepspeed
        ({}, Place(3, 0, 4, 4)),
    ],
)
def test_the_place_that_a_launcher_has_told(
    told: dict[str, str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", **told}.items():
        monkeypatch.setenv(name, value)
    assert Place.told() == place
