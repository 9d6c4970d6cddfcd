"""Two hosts on one machine: a network namespace each, joined by a cable; neither reaches the other's loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        name: of its namespace.
        address: under which the other one reaches it.
        prefix: what makes a command run there.
    """

    name: str
    address: str
    prefix: tuple[str, ...]


def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None:
        return False
    name = f"segclip-probe-{os.getpid()}"
    allowed = _run(["ip", "netns", "add", name]) and _run(
        ["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"]
    )
    _run(["ip", "netns", "del", name])
    return allowed


@contextlib.contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Two namespaces with addresses 10.77.0.1 and 10.77.0.2; without the right to make any, two loopback addresses."""
    if not namespaces_allowed():
        yield [Host(f"host{n}", f"127.0.0.{n + 1}", ()) for n in (1, 2)]
        return
    hosts = [
        Host(name, f"10.77.0.{n}", ("ip", "netns", "exec", name))
        for n, name in enumerate((f"segclip-a-{os.getpid()}", f"segclip-b-{os.getpid()}"), start=1)
    ]
    cable = ("sega", "segb")
    try:
        for host in hosts:
            _must(["ip", "netns", "add", host.name])
        _must(["ip", "link", "add", cable[0], "netns", hosts[0].name, "type", "veth", "peer", "name", cable[1],
               "netns", hosts[1].name])  # fmt: skip
        for host, end in zip(hosts, cable, strict=True):
            _must([*host.prefix, "ip", "addr", "add", f"{host.address}/24", "dev", end])
            for device in (end, "lo"):
                _must([*host.prefix, "ip", "link", "set", device, "up"])
        yield hosts
    finally:
        for host in hosts:
            _run(["ip", "netns", "del", host.name])


def _run(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _must(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
