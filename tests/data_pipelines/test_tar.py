from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from segclip.data_pipelines.shard_writer import pack
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


def test_names_that_begin_at_the_folder_itself_are_read() -> None:
    data = header("./a.jpg", 0) + header("./d/b.jpg", 0) + bytes(2 * BLOCK)
    assert [sample.key for sample in group_samples(data, "x.tar")] == ["a", "d/b"]


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


def of_python(style: int, names: list[str]) -> bytes:
    """An archive of Python's writer, with a folder in it, as small as it can be."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        folder = tarfile.TarInfo("f" * 99 + "/" + "g" * 50)
        folder.type, folder.mtime = tarfile.DIRTYPE, 0.5
        archive.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * number, 1700000000.25
            archive.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
    return buffer.getvalue()


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_at_every_byte_is_an_error_in_every_style(style: int) -> None:
    """Headers of ustar with a prefix, GNU long names and pax records: wherever the end is missing, it is noticed."""
    names = ["a/000.jpg", "a/000.txt", "b" * 60 + "/" + "c" * 70 + ".jpg", "a/001.txt"]
    data = of_python(style, names)
    whole = contents(data)
    assert whole == [(name, bytes([65 + n]) * (300 * n)) for n, name in enumerate(names)]
    end = len(data.rstrip(b"\0"))
    end = -(-end // BLOCK) * BLOCK + 2 * BLOCK
    assert contents(data[:end]) == whole
    for cut in range(end):
        with pytest.raises(
            ValueError, match=r"shard s3://b/x\.tar is (cut|corrupt|cut or corrupt) at byte \d+"
        ):
            list(read_members(data[:cut], "s3://b/x.tar"))


def test_a_long_name_of_a_folder_is_not_taken_for_that_of_the_next_file() -> None:
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert [name for name, _ in contents(of_python(style, ["a.txt"]))] == ["a.txt"]


def resealed(head: bytearray) -> bytes:
    """A header with its checksum made right."""
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize("size", [b"-0000001000\0", b"-1         \0"])
def test_a_length_below_zero_is_an_error_and_no_endless_loop(size: bytes) -> None:
    head = bytearray(header("a.txt", 0))
    head[124:136] = size
    with pytest.raises(ValueError, match=r"x.tar is corrupt at byte 512"):
        list(read_members(header("b.txt", 0) + resealed(head) + bytes(2 * BLOCK), "x.tar"))


@pytest.mark.parametrize(
    "record",
    [b"0 a=b\n", b"-6 a=b\n", b"99 a=b\n", b"6 a=bc\n", b"7 size\n", b"11 size=-1\n", b"12 size=1_0\n"],
)
def test_pax_records_that_lie_are_errors_and_no_endless_loop(record: bytes) -> None:
    head = bytearray(header("pax", len(record)))
    head[156:157] = b"x"
    data = resealed(head) + record.ljust(BLOCK, b"\0") + header("a.txt", 0) + bytes(2 * BLOCK)
    with pytest.raises(ValueError, match=r"x.tar is corrupt at byte \d+"):
        list(read_members(data, "x.tar"))


def test_a_size_of_twelve_digits_is_read_whole() -> None:
    """Old writers fill the whole field, without a zero at its end."""
    head = bytearray(header("a.txt", 8))
    head[124:136] = b"000000000010"
    data = resealed(head) + b"12345678".ljust(BLOCK, b"\0") + bytes(2 * BLOCK)
    assert contents(data) == [("a.txt", b"12345678")]


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
    "name",
    [
        "../up.jpg",
        "/etc/x.jpg",
        "a/../b.jpg",
        "a//b.jpg",
        "a b.jpg",
        "a\\b.jpg",
        ".jpg",
        "././a.jpg",
        "./../a.jpg",
    ],
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
