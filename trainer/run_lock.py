"""One run in a folder at a time.

Two runs in one folder would overwrite each other's checkpoints and mix their metrics. The first rank holds a lock on
``run.lock`` until its process ends, however it ends: it is the operating system that lets go, so a run that was killed
leaves the file, with who held it last, and no lock. Nothing has to be removed by hand and no age is guessed.

It is a POSIX record lock (``fcntl``), not ``flock``: that of a killed process would live on in workers that it has
forked. The price is that a process loses it when it closes any descriptor of the file, so nothing else here opens it.

Network file systems: NFS 4 holds such locks itself and NFS 3 by ``lockd``, across hosts. When a host is lost, NFS 4
forgets its locks after the lease (90 s by default); NFS 3 only when that host is back, or the file is removed. Lustre
needs the mount option ``flock`` (with ``localflock`` hosts do not see each other's locks). Where a file system has no
locks, a warning says so and the run goes on without.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["LOCK", "hold_run_folder"]

log = logging.getLogger(__name__)
LOCK = "run.lock"
# Nobody can hold a lock there.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
HELD = (errno.EACCES, errno.EAGAIN)
# Descriptors of the locks that this process holds, by folder: as long as they are open.
_held: dict[Path, int] = {}


def hold_run_folder(run_dir: str | Path, patience: float = 5.0) -> None:
    """Hold ``run_dir`` for this process until it ends. To hold it again is no error.

    Args:
        run_dir: folder of the run; it exists.
        patience: seconds in which a run that was just killed may end.

    Raises:
        ValueError: another run holds it; names its host, process, start and command.
        OSError: the folder cannot be written.
    """
    folder = Path(run_dir).resolve()
    if folder in _held:
        return
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, time.monotonic() + patience)
    except OSError as error:
        holder = os.read(descriptor, 65536)
        os.close(descriptor)
        if error.errno in WITHOUT_LOCKS:
            log.warning(
                "%s cannot be locked (%s): its file system has no locks, so see to it that no other run uses this "
                "folder",
                path,
                error.strerror,
            )
            return
        if error.errno not in HELD:
            raise
        raise ValueError(
            f"run_dir {folder} is in use by {_described(holder)}: wait for that run or end it, or give another run_dir "
            f"(if its host is gone for good, remove {path})"
        ) from error
    _held[folder] = descriptor
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
    }
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner, indent=1).encode() + b"\n", 0)
    os.fsync(descriptor)


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _described(holder: bytes) -> str:
    try:
        owner: dict[str, Any] = json.loads(holder)
        return f"process {owner['pid']} on {owner['host']} since {owner['time']} ({owner['command']})"
    except (ValueError, KeyError, TypeError):
        return "another run that has just started"
