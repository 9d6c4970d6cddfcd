"""Processes of a run find each other: who is missing is named, and what must be equal on all hosts is compared.

Every rank leaves a ``Greeting`` at the first rank's store before the process group is made. A rank that does not come
is an error on all others, with the name of its host where the launcher has told it; so are other versions of software,
another configuration, and clocks that are far apart.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from segclip.console import UserError, words_of

__all__ = ["Greeting", "Place", "compare", "free_port", "hosts_of_launcher", "interface_towards", "meet"]

PACKAGES = ("segclip", "torch", "deepspeed", "triton", "numpy")
# Seconds that clocks may be apart: time stamps of one run are compared with each other.
CLOCKS = 60.0
# Seconds that ranks wait for those that have not come; SEGCLIP_MEETING_SECONDS overrides it.
MEETING_SECONDS = 300.0
# Seconds that the first rank waits for others to read what it has read.
LAST_WAIT = 10.0


@dataclass(frozen=True)
class Greeting:
    """What a rank says of itself.

    Attributes:
        rank: which it is.
        host: name of its host.
        versions: of Python and of the packages that compute.
        config: SHA-256 of the configuration it was started with.
        clock: seconds since 1970, when it said so.
    """

    rank: int
    host: str
    versions: dict[str, str]
    config: str
    clock: float

    @classmethod
    def own(cls, rank: int, config: str) -> Greeting:
        """Of this process.

        Args:
            rank: of this process.
            config: the configuration as text.
        """
        versions = {"python": platform.python_version()}
        for package in PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = "none"
        digest = hashlib.sha256(config.encode()).hexdigest()
        return cls(rank, socket.gethostname(), versions, digest, time.time())


@dataclass(frozen=True)
class Place:
    """Where the launcher has put this process among those of a run."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def told(cls) -> Place:
        """By the environment, which says at least the rank and how many there are."""
        world_size = int(os.environ["WORLD_SIZE"])
        local = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size))
        return cls(int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")), world_size, int(local))

    def share_cores(self) -> None:
        """Let torch use this rank's part of the cores of its host; a rank alone there keeps OMP_NUM_THREADS."""
        if "OMP_NUM_THREADS" not in os.environ or self.local_world_size > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self.local_world_size))

    def meet(self, config: str) -> Any:
        """``meet`` with the interface that other hosts reach, for as long as the environment says.

        Args:
            config: as text, which must be the same on all ranks.
        """
        if self.world_size > self.local_world_size:
            # Left alone, both take the interface of the host's name, which is often one that other hosts do not reach.
            interface = interface_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
            if interface is not None:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
                os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        return meet(
            Greeting.own(self.rank, config),
            world_size=self.world_size,
            local_world_size=self.local_world_size,
            seconds=float(os.environ.get("SEGCLIP_MEETING_SECONDS", MEETING_SECONDS)),
        )


def meet(
    greeting: Greeting, *, world_size: int, local_world_size: int, seconds: float, clocks: float = CLOCKS
) -> Any:
    """Wait until all ranks are there and agree.

    The store is that of ``MASTER_ADDR`` and ``MASTER_PORT``: the first rank's, or ``torchrun``'s where that holds one.

    Args:
        greeting: of this rank.
        world_size: ranks that are expected.
        local_world_size: how many of them each host has.
        seconds: how long to wait for the others.
        clocks: seconds that clocks may be apart.

    Returns:
        The store, to make a process group with.

    Raises:
        UserError: a rank did not come, or the ranks differ in what must be equal.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = hosts_of_launcher()
    wait = datetime.timedelta(seconds=seconds)
    serves = greeting.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(address, port, world_size, serves, wait, wait_for_workers=False)
    except (dist.DistError, RuntimeError, ValueError) as error:
        if serves:
            raise UserError(
                f"the first rank cannot listen on port {port} of {address}: {words_of(error, 200)}. Is another run "
                "using it? Give another --master_port"
            ) from error
        first = f"host {hosts[0]}" if hosts else "the first host"
        raise UserError(
            f"{greeting.host} (rank {greeting.rank}) cannot reach the first rank at {address}:{port} within "
            f"{seconds:.0f} s: is the run started on {first}, is --master_addr its address, and does its firewall let "
            f"port {port} through?"
        ) from error
    prefix = PrefixStore(f"segclip/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    prefix.set(f"greeting/{greeting.rank}", json.dumps(asdict(greeting)))
    try:
        greetings = _collect(prefix, world_size, time.monotonic() + seconds)
        # Nobody takes the store along before all who are there have read it.
        prefix.add("read", 1)
        leave = time.monotonic() + LAST_WAIT
        while greeting.rank == 0 and int(prefix.add("read", 0)) < len(greetings) and time.monotonic() < leave:
            time.sleep(0.02)
    except dist.DistError as error:
        raise UserError(
            f"{greeting.host} (rank {greeting.rank}): the first rank has ended, which says why"
        ) from error
    missing = sorted(set(range(world_size)) - {each.rank for each in greetings})
    if missing:
        raise UserError(
            f"{len(missing)} of {world_size} ranks did not come within {seconds:.0f} s: "
            f"{_named(missing, hosts, local_world_size)}. Is the run started there, with the same number of hosts, and "
            f"do they reach {address}:{port}?"
        )
    problem = compare(greetings, clocks)
    if problem:
        raise UserError(problem)
    return prefix


def compare(greetings: Sequence[Greeting], clocks: float = CLOCKS) -> str | None:
    """What differs between ranks and must not, in one line; None if nothing does."""
    first = min(greetings, key=lambda each: each.rank)
    for other in sorted(greetings, key=lambda each: each.rank):
        names = f"{first.host} (rank {first.rank}) and {other.host} (rank {other.rank})"
        differing = [
            f"{package} {first.versions.get(package)} and {other.versions.get(package)}"
            for package in sorted(first.versions.keys() | other.versions.keys())
            if first.versions.get(package) != other.versions.get(package)
        ]
        if differing:
            return f"{names} have different software: {', '.join(differing)}. Install the same on all hosts"
        if other.config != first.config:
            return (
                f"{names} were started with different configurations (SHA-256 {first.config[:12]} and "
                f"{other.config[:12]}): give the same file and the same settings on all hosts"
            )
        if abs(other.clock - first.clock) > clocks:
            return (
                f"the clocks of {names} are {abs(other.clock - first.clock):.0f} s apart, more than {clocks:.0f}: "
                "synchronise them (chrony, ntpd)"
            )
    return None


def hosts_of_launcher() -> list[str]:
    """Names of the hosts in the order of their ranks, as far as a launcher tells; empty otherwise."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if nodes and int(os.environ.get("SLURM_NNODES", "1")) > 1:
        return _slurm_hosts(nodes)
    try:
        # DeepSpeed tells its launcher on each host, not the ranks.
        words = (
            Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
        )
        told = next(word.partition("=")[2] for word in words if word.startswith("--world_info="))
        return list(json.loads(base64.urlsafe_b64decode(told)))
    except (OSError, StopIteration, ValueError):
        return []


def free_port() -> int:
    """A port of this host's loopback that nothing uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def interface_towards(address: str, port: int) -> str | None:
    """Name of the network interface through which this host reaches an address; None if that is not to be found."""
    import psutil  # type: ignore[import-untyped]

    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            return str(name)
    return None


def _collect(store: Any, world_size: int, until: float) -> list[Greeting]:
    """Greetings of the ranks that have come by some time."""
    found: dict[int, Greeting] = {}
    while True:
        for rank in range(world_size):
            key = f"greeting/{rank}"
            if rank not in found and store.check([key]):
                found[rank] = Greeting(**json.loads(store.get(key)))
        if len(found) == world_size or time.monotonic() > until:
            return list(found.values())
        time.sleep(0.1)


def _named(ranks: Sequence[int], hosts: Sequence[str], local_world_size: int) -> str:
    """``host b (ranks 2, 3)`` or, where hosts have no known name, ``host number 1 (ranks 2, 3)``."""
    of_host: dict[int, list[int]] = {}
    for rank in ranks:
        of_host.setdefault(rank // local_world_size, []).append(rank)
    parts = []
    for number, members in of_host.items():
        name = f"host {hosts[number]}" if number < len(hosts) else f"host number {number}"
        several = "ranks" if len(members) > 1 else "rank"
        parts.append(f"{name} ({several} {', '.join(map(str, members))})")
    return ", ".join(parts)


def _slurm_hosts(nodes: str) -> list[str]:
    """``gpu[01-03,07],cpu1`` -> ``gpu01 gpu02 gpu03 gpu07 cpu1``."""
    hosts: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,\[]*", nodes):
        head, bracket, rest = part.partition("[")
        if not bracket:
            hosts.append(head)
            continue
        inside, _, tail = rest.partition("]")
        for piece in inside.split(","):
            low, dash, high = piece.partition("-")
            numbers = range(int(low), int(high) + 1) if dash else [int(low)]
            hosts += [f"{head}{number:0{len(low)}d}{tail}" for number in numbers]
    return hosts
