"""A tar reader that never takes a broken shard for a whole one.

Works on the bytes of a whole archive and hands out slices of them, so no member is copied. Every header's
checksum is
verified and the two zero blocks that end an archive must be there: an archive cut anywhere, also exactly
between two members, is a ``ValueError`` that names the shard and the offset. Understood are ustar, GNU long
names and pax records (Python's own ``tarfile`` writes them as soon as a time stamp has a fraction); links and
devices are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "LONGEST_NAME",
    "PICKLE_LIKE",
    "Member",
    "SampleIndex",
    "group_samples",
    "header",
    "read_members",
    "split_name",
    "trailer",
]

BLOCK = 512
LONGEST_NAME = 100  # of a member that is written, in bytes
PICKLE_LIKE = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill", "npy", "npz"})
"""Last parts of a member's extension that can carry code when decoded; such members are passed over
unread."""

_SAFE_KEY = re.compile(r"[A-Za-z0-9_+=,@~-]+(/[A-Za-z0-9_+=,@~-]+)*")
_REGULAR, _DIRECTORY, _LONG_NAME, _PAX, _PAX_GLOBAL = b"0\x00", b"5", b"L", b"x", b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive: its name and where its content lies, ``data[start:end]``."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """A sample of a shard: its key and, by extension (``jpg``, ``superpixels.png``), where its members
    lie."""

    key: str
    members: dict[str, tuple[int, int]]


def read_members(data: bytes | bytearray | memoryview, shard: str) -> Iterator[Member]:
    """The regular files of a tar archive, in order.

    Args:
        data: the whole archive.
        shard: its name, for messages.

    Raises:
        ValueError: the archive is cut, a header is corrupt, or a member is of a kind that shards do not hold.
    """
    view = memoryview(data)
    size = len(view)
    blocks = np.frombuffer(view[: size - size % BLOCK], dtype=np.uint8).reshape(-1, BLOCK)
    # One vectorised pass instead of 512 additions in Python per header; payload blocks are summed for
    # nothing.
    sums = blocks.sum(axis=1, dtype=np.uint32)
    plain = _plain_members(blocks, sums)
    if plain is not None:
        yield from plain
        return
    long_name: str | None = None
    pax: dict[str, str] = {}
    offset = 0
    while True:
        if offset + BLOCK > size:
            raise ValueError(
                f"shard {shard} is cut at byte {size}: no header and no end of archive at byte {offset}; "
                "write or download it again"
            )
        index = offset // BLOCK
        if sums[index] == 0:
            if offset + 2 * BLOCK > size or sums[index + 1] != 0:
                raise ValueError(
                    f"shard {shard} is cut or corrupt at byte {offset}: one zero block where a tar ends with "
                    "two; write or download it again"
                )
            return
        head = bytes(view[offset : offset + BLOCK])
        length = _check_header(head, int(sums[index]), shard, offset)
        kind = head[156:157]
        if kind in _REGULAR:
            name = pax.get("path") or long_name or _name(head, shard, offset)
            length = _pax_size(pax, length, shard, offset)
        start = offset + BLOCK
        end = start + length
        padded = start + -(-length // BLOCK) * BLOCK
        if padded > size:
            raise ValueError(
                f"shard {shard} is cut at byte {size}: {padded - size} bytes of the member at byte {offset} "
                "are missing; write or download it again"
            )
        if kind in _REGULAR:
            long_name, pax = None, {}
            yield Member(name, start, end)
        elif kind == _PAX:
            pax = _pax_records(bytes(view[start:end]), shard, offset)
        elif kind == _LONG_NAME:
            long_name = bytes(view[start:end]).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == _DIRECTORY:
            long_name, pax = None, {}  # what stood before it was said of the directory
        elif kind != _PAX_GLOBAL:
            raise ValueError(
                f"shard {shard} holds a member of tar type {kind!r} at byte {offset}: "
                "only regular files are allowed"
            )
        offset = padded


def _plain_members(blocks: NDArray[np.uint8], sums: NDArray[np.uint32]) -> list[Member] | None:
    """The members of a whole archive of regular files with plain ustar headers, checked in bulk; None for any
    other.

    Anything unusual, faults included, is left to the careful reader, which knows what to say about it.
    """
    count = len(blocks)
    lengths = _octal(blocks, 124, 11).tolist()
    occupied = (sums != 0).tolist()
    heads: list[int] = []
    at = 0
    while at < count and occupied[at]:
        if lengths[at] < 0:
            return None
        heads.append(at)
        at += 1 - (-lengths[at] // BLOCK)
    if not heads or at + 1 >= count or occupied[at + 1]:
        return None
    headers = blocks[heads]
    digits = headers[:, 124:135]
    checksums = sums[heads].astype(np.int64) - headers[:, 148:156].sum(axis=1) + 8 * 32
    plain = (
        ((digits >= 48) & (digits < 56)).all()
        and np.isin(headers[:, 135], (0, 32)).all()
        and np.isin(headers[:, 156], (0, 48)).all()
        and (headers[:, 345] == 0).all()
        and (headers[:, 0] != 0).all()
        and (headers[:, :100] < 128).all()
        and (_octal(headers, 148, 6) == checksums).all()
        and (headers[:, 154:156] == (0, 32)).all()
    )
    if not plain:
        return None
    names = headers[:, :100].tobytes()
    members = []
    for row, head in enumerate(heads):
        name = names[row * 100 : row * 100 + 100].partition(b"\0")[0].decode("ascii")
        start = (head + 1) * BLOCK
        members.append(Member(name, start, start + lengths[head]))
    return members


def _octal(blocks: NDArray[np.uint8], first: int, digits: int) -> NDArray[np.int64]:
    """The octal number in some columns of every block; nonsense where there is none."""
    powers = 8 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    return (blocks[:, first : first + digits].astype(np.int64) - 48) @ powers


def _check_header(head: bytes, total: int, shard: str, offset: int) -> int:
    """Verify a header's checksum and return the member's length."""
    field = head[148:156]
    try:
        stated = int(field.strip(b" \0") or b"-1", 8)
        length = (
            int.from_bytes(head[125:136], "big")
            if head[124] & 0x80
            else int(head[124:136].strip(b" \0") or b"0", 8)
        )
    except ValueError:
        stated, length = -1, 0
    if length < 0:  # Python reads a sign, and would go back to a header that was read already
        stated = -1
    # The checksum is taken with its own field read as eight spaces.
    if total - sum(field) + 8 * 32 != stated:
        raise ValueError(
            f"shard {shard} is corrupt at byte {offset}: the checksum of a tar header does not match"
        )
    return length


def _pax_size(pax: dict[str, str], length: int, shard: str, offset: int) -> int:
    """A member's length as its pax records state it; as its header does where they do not."""
    stated = pax.get("size")
    if stated is None:
        return length
    if not (stated.isascii() and stated.isdecimal()):
        raise ValueError(
            f"shard {shard} is corrupt at byte {offset}: its pax records state the size {stated!r}"
        )
    return int(stated)


def _name(head: bytes, shard: str, offset: int) -> str:
    raw = head[:100].split(b"\0", 1)[0]
    if head[257:263] == b"ustar\0" and head[345]:
        raw = head[345:500].split(b"\0", 1)[0] + b"/" + raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"shard {shard}: the name {raw!r} of the member at byte {offset} is not UTF-8"
        ) from error


def _pax_records(content: bytes, shard: str, offset: int) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        try:
            digits, _, _ = content.partition(b" ")
            length = int(digits)
            if content[length - 1 : length] != b"\n":  # nor may it be 0 or less, and never end
                raise ValueError
            key, value = content[len(digits) + 1 : length - 1].split(b"=", 1)
            records[key.decode()] = value.decode()
        except ValueError as error:
            raise ValueError(f"shard {shard} is corrupt at byte {offset}: unreadable pax records") from error
        content = content[length:]
    return records


def split_name(name: str) -> tuple[str, str]:
    """Key of a member and its extension in small letters, split at the first dot of the last path part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")  # "tar -c ." begins every name with ./
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def group_samples(data: bytes | bytearray | memoryview, shard: str) -> list[SampleIndex]:
    """The samples of a shard: neighbouring members whose names agree up to the first dot of the last path
    part.

    Raises:
        ValueError: as ``read_members``; a key that is unsafe as a file name; the same extension twice in a
            sample.
    """
    samples: list[SampleIndex] = []
    for member in read_members(data, shard):
        key, extension = split_name(member.name)
        if not samples or samples[-1].key != key:
            if not _SAFE_KEY.fullmatch(key):
                raise ValueError(
                    f"shard {shard}: refused the sample key {key!r} of member {member.name!r}: a key is "
                    "letters, digits and _+=,@~- with single slashes, relative, without '..'"
                )
            samples.append(SampleIndex(key, {}))
        if not extension or extension.rpartition(".")[2] in PICKLE_LIKE:
            continue
        if extension in samples[-1].members:
            raise ValueError(f"shard {shard}: sample {key!r} has two members with extension {extension!r}")
        samples[-1].members[extension] = (member.start, member.end)
    return samples


def header(name: str, length: int) -> bytes:
    """A ustar header that depends on nothing but name and length (no time, no owner): 512 bytes."""
    raw = name.encode()
    if len(raw) > LONGEST_NAME:
        raise ValueError(f"member name {name!r} has {len(raw)} bytes: a shard takes at most {LONGEST_NAME}")
    before = raw.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % length + b"00000000000\0"
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    head = before + b" " * 8 + after
    head = head.ljust(BLOCK, b"\0")
    return before + b"%06o\0 " % sum(head) + head[156:]


def trailer(size: int) -> bytes:
    """What ends an archive of ``size`` bytes: two zero blocks, then zeros up to tar's record of 20 blocks."""
    total = -(-(size + 2 * BLOCK) // (20 * BLOCK)) * 20 * BLOCK
    return bytes(total - size)
