from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from segclip.data_pipelines.shards import pack
from segclip.data_pipelines.tar import BLOCK, group_samples, header, read_members

SAMPLES = [
    (f"{n:03d}", {"jpg": b"j" * (500 * n + 1), "txt": f"caption {n}".encode(), "json": b"{}"})
    for n in range(4)
]


def contents(data: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, data[member.start : member.end]) for member in read_members(data, "x.tar")]


def expected() -> list[tuple[str, bytes]]:
    return [
        (f"{key}.{extension}", content) for key, members in SAMPLES for extension, content in members.items()
    ]


def test_reads_what_pack_writes_and_so_do_others() -> None:
    data, count = pack(SAMPLES)
    assert count == 4
    assert contents(data) == expected()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(each.name, each.mtime, each.uid, archive.extractfile(each).read()) for each in archive]
    assert members == [(name, 0, 0, content) for name, content in expected()]
    samples = group_by_keys(tar_file_expander([{"url": "x.tar", "stream": io.BytesIO(data)}]))
    assert [(each["__key__"], each["txt"]) for each in samples] == [
        (key, members["txt"]) for key, members in SAMPLES
    ]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_archives_of_python_with_long_names_and_fractional_times(style: int) -> None:
    buffer = io.BytesIO()
    long_name = "folder/" + "k" * (90 if style == tarfile.USTAR_FORMAT else 180) + ".txt"
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        for name, content in [*expected(), (long_name, b"long")]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1700000000.25
            archive.addfile(info, io.BytesIO(content))
    assert contents(buffer.getvalue()) == [*expected(), (long_name, b"long")]


def test_a_cut_at_every_block_is_an_error_with_shard_and_offset() -> None:
    data, _ = pack(SAMPLES)
    end = sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for _, content in expected())
    cuts = list(range(0, end + 2 * BLOCK, BLOCK))
    assert len(cuts) == 29
    for cut in [*cuts, 100, 513, end + 700]:
        with pytest.raises(ValueError, match=r"shard s3://b/x\.tar is (cut|cut or corrupt) at byte \d+"):
            list(read_members(data[:cut], "s3://b/x.tar"))
    assert contents(data[: end + 2 * BLOCK]) == expected()  # two zero blocks are enough


@pytest.mark.parametrize("member", [0, 5, 11])
def test_a_changed_byte_anywhere_in_a_header_is_an_error(member: int) -> None:
    data, _ = pack(SAMPLES)
    start = list(read_members(data, "x.tar"))[member].start - BLOCK
    for byte in range(BLOCK):
        broken = bytearray(data)
        broken[start + byte] ^= 1
        with pytest.raises(ValueError, match=f"x.tar is .* byte {start}"):
            list(read_members(broken, "x.tar"))


def test_a_lost_block_is_an_error() -> None:
    data, _ = pack(SAMPLES)
    blocks = sum(1 + -(-len(content) // BLOCK) for _, content in expected())
    # For the last block padding would take its place: only the manifest's SHA-256 shows that.
    for index in range(blocks - 1):
        shorter = data[: index * BLOCK] + data[(index + 1) * BLOCK :]
        try:
            found = contents(shorter)
        except ValueError:
            continue
        pytest.fail(f"block {index} could be taken out unnoticed: {[name for name, _ in found]}")


def test_pickles_are_never_touched(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(marker), "w"))

    payload = pickle.dumps(Evil())
    data, _ = pack([("a", {"txt": b"t", "pyd": payload, "x.pkl": payload, "pth": payload, "npy": payload})])
    (sample,) = group_samples(data, "x.tar")
    assert set(sample.members) == {"txt"}
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["../up.jpg", "/etc/x.jpg", "a/../b.jpg", "a//b.jpg", "a b.jpg", "a\\b.jpg", ".jpg"]
)
def test_unsafe_keys_are_refused(name: str) -> None:
    data = header(name, 0) + bytes(2 * BLOCK)
    with pytest.raises(ValueError, match="refused the sample key"):
        group_samples(data, "x.tar")


def test_links_and_doubled_extensions_are_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="only regular files"):
        list(read_members(buffer.getvalue(), "x.tar"))
    twice = header("a.txt", 0) * 2 + bytes(2 * BLOCK)
    with pytest.raises(ValueError, match="two members with extension 'txt'"):
        group_samples(twice, "x.tar")


def test_keys_go_up_to_the_first_dot_of_the_last_part() -> None:
    data, _ = pack([("d/a", {"superpixels.png": b"p", "JPG": b"j"}), ("d/b", {"jpg": b"j"})])
    samples = group_samples(data, "x.tar")
    assert [(each.key, sorted(each.members)) for each in samples] == [
        ("d/a", ["jpg", "superpixels.png"]),
        ("d/b", ["jpg"]),
    ]


def test_too_long_a_name_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="at most 100"):
        pack([("k" * 99, {"jpg": b""})])
