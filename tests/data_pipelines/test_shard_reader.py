from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from segclip.data_pipelines.config import DataConfig
from segclip.data_pipelines.counters import Counters
from segclip.data_pipelines.errors import BadShard
from segclip.data_pipelines.manifest import ShardEntry, describe
from segclip.data_pipelines.shard_reader import ShardReader
from segclip.data_pipelines.shard_writer import pack
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.tar import BLOCK
from tests.data_pipelines.faulty_server import FaultyServer, faulty_server, instead

CONTENT, COUNT = pack(
    (f"{n}", {"jpg": b"j" * (400 * n + 1), "txt": b"t", "json": json.dumps({"n": n}).encode()})
    for n in range(5)
)
ENTRY = describe("x.tar", CONTENT, COUNT)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        running.content["/x.tar"] = CONTENT
        yield running


def reader(url: object, counters: Counters | None = None, **store: object) -> ShardReader:
    return ShardReader(
        str(url), DataConfig(shards=str(url), store=StoreConfig.model_validate(store)), counters or Counters()
    )


def cause_of(reader: ShardReader, entry: ShardEntry) -> tuple[str, str]:
    with pytest.raises(BadShard) as caught:
        reader.read(entry)
    return caught.value.cause, str(caught.value)


def test_a_cut_at_every_block_is_found_by_the_manifest_and_without_it(tmp_path: Path) -> None:
    """A manifest made of the cut file states its length and sum: then the tar itself has to tell."""
    path = tmp_path / "x.tar"
    end = len(CONTENT.rstrip(b"\0"))
    cuts = [cut for cut in range(0, len(CONTENT), BLOCK) if cut < end + 2 * BLOCK]
    assert len(cuts) > 30
    for cut in cuts:
        path.write_bytes(CONTENT[:cut])
        cause, message = cause_of(reader(tmp_path), ENTRY)
        assert cause == ("length" if cut else "empty")
        assert f"{tmp_path}/x.tar" in message
        cause, message = cause_of(reader(tmp_path), describe("x.tar", CONTENT[:cut], COUNT))
        assert cause == ("tar" if cut else "empty")
        assert f"byte {cut}" in message or cut == 0 or "is cut or corrupt at byte" in message


def test_what_is_wrong_with_a_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(CONTENT)
    assert len(reader(tmp_path).read(ENTRY).samples) == COUNT
    assert cause_of(reader(tmp_path), ENTRY.model_copy(update={"count": 4}))[0] == "count"
    assert cause_of(reader(tmp_path), ENTRY.model_copy(update={"path": "y.tar"}))[0] == "missing"
    path.write_bytes(CONTENT.replace(b"jjj", b"jxj"))
    counters = Counters()
    assert cause_of(reader(tmp_path, counters), ENTRY)[0] == "checksum"
    assert counters["store/retries/checksum"] == 0  # a disk gives the same again
    path.write_bytes(b"<html>" + CONTENT[6:])
    assert cause_of(reader(tmp_path), ENTRY)[0] == "web_page"


def test_damage_on_the_way_is_asked_for_again(server: FaultyServer) -> None:
    counters = Counters()
    server.faults.append(instead(CONTENT.replace(b"jjj", b"jxj"), "application/x-tar"))
    server.faults.append(instead(CONTENT.replace(b"jjj", b"jxj"), "application/x-tar"))
    # The first answer to a range is everything, so the object is asked for whole; that is damaged too.
    assert len(reader(server.url, counters).read(ENTRY).samples) == COUNT
    assert counters["store/retries/checksum"] == 1
    server.content["/x.tar"] = CONTENT.replace(b"jjj", b"jxj")
    assert cause_of(reader(server.url), ENTRY)[0] == "checksum"


def test_the_cache_saves_the_way_to_the_store(server: FaultyServer, tmp_path: Path) -> None:
    counters = Counters()
    for _ in range(3):
        shard = reader(server.url, counters, cache_dir=str(tmp_path / "cache")).read(ENTRY)
        assert bytes(shard.content) == CONTENT
    assert counters.take() == {"cache/misses": 1, "cache/hits": 2, "store/bytes": len(CONTENT)}
    # What is wrong on the way in is not kept, though the run may be content without sums.
    server.content["/x.tar"] = CONTENT.replace(b"jjj", b"jxj")
    careless = ShardReader(
        server.url,
        DataConfig(shards=server.url, checksum=False, store=StoreConfig(cache_dir=str(tmp_path / "other"))),
        counters,
    )
    assert cause_of(careless, ENTRY)[0] == "checksum"
    assert not list((tmp_path / "other" / "shards").iterdir())


def test_local_files_are_not_cached(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(CONTENT)
    counters = Counters()
    reader(tmp_path, counters, cache_dir=str(tmp_path / "cache")).read(ENTRY)
    assert counters.take() == {"store/bytes": len(CONTENT)}
    assert not (tmp_path / "cache").exists()
