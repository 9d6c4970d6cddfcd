"""Checkpoints in a real S3 server and in a folder: sent, torn, sent again, pruned and brought back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from segclip.data_pipelines.storage.s3_server import S3Server, s3_server
from segclip.data_pipelines.storage.store import open_store
from segclip.trainer.checkpoints.retention import Retention
from segclip.trainer.checkpoints.store import (
    DamagedError,
    OtherRunError,
    fetch,
    newest,
    send,
    stored,
    upload,
)
from segclip.trainer.checkpoints.upload import Uploads, fetch_newer
from segclip.trainer.config import load_run_config, save_run_config
from segclip.trainer.faults import FAULTS, FIRED
from tests.distributed.conftest import SMALL
from tests.trainer.checkpoints.checkpoint_files import run_config, upload_with, write_checkpoint

pytestmark = pytest.mark.slow
KEEP = Retention(keep_last=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with (
        s3_server(tmp_path_factory.mktemp("s3"), bucket="bucket") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "store").as_uri()
    server: S3Server = request.getfixturevalue("server")
    return f"{server.url}/{tmp_path.name}"


def paths(url: str) -> list[str]:
    return [entry.path for entry in open_store(url, create=True).list()]


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def upload_killed(folder: Path, url: str, where: str, fired: Path) -> None:
    """Upload in a process that is killed at some place."""
    fault = {"where": where, "rank": 0, "step": int(folder.name.removeprefix("step-")), "what": "kill"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segclip.trainer.checkpoints.store"])
    # The process that forks has the variables of when it was started.
    environment = {**os.environ, FAULTS: json.dumps([fault]), FIRED: str(fired), "RANK": "0"}
    process = context.Process(target=upload_with, args=(environment, folder, url))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert len(fired.read_text().splitlines()) == 1


def test_there_and_back(url: str, tmp_path: Path) -> None:
    # More than one part, and more than one piece would be if it were larger still.
    folder = write_checkpoint(tmp_path / "run", 7, size=9 << 20)
    assert newest(url) is None
    assert fetch(url, tmp_path / "again") is None
    assert upload(folder, url) == sum(
        p.stat().st_size for p in folder.iterdir() if p.name != "checksums.json"
    )
    assert newest(url) == "step-00000007"
    assert upload(folder, url) == 0
    found = fetch(url, tmp_path / "again", run="test")
    assert found == tmp_path / "again" / "checkpoints" / "step-00000007"
    assert same(folder, found)
    assert fetch(url, tmp_path / "again", after=7) is None
    assert [path.name for path in found.parent.iterdir()] == ["step-00000007"]


def test_an_object_in_pieces(url: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "run", 7, size=1000)
    upload(folder, url)
    name = "mp_rank_00_model_states.pt"
    pieces = list(open_store(url).pieces(f"step-00000007/{name}", 1000, piece=300))
    assert [len(piece) for piece in pieces] == [300, 300, 300, 100]
    assert b"".join(pieces) == (folder / name).read_bytes()


@pytest.mark.parametrize("where", ["upload file", "upload manifest"])
def test_an_upload_that_was_killed_is_never_chosen_and_the_next_one_completes_it(
    url: str, tmp_path: Path, where: str
) -> None:
    upload(write_checkpoint(tmp_path / "run", 3), url)
    folder = write_checkpoint(tmp_path / "run", 6)
    upload_killed(folder, url, where, tmp_path / "fired")
    assert "step-00000006/config.yaml" in paths(url)
    assert newest(url) == "step-00000003"
    found = fetch(url, tmp_path / "again")
    assert found is not None
    assert found.name == "step-00000003"
    whole = sum(path.stat().st_size for path in folder.iterdir() if path.name != "checksums.json")
    first = (folder / "config.yaml").stat().st_size
    assert upload(folder, url) == (whole - first if where == "upload file" else 0)
    found = fetch(url, tmp_path / "again", after=3)
    assert found is not None
    assert same(folder, found)
    assert not [path for path in paths(url) if "uploading" in path]


def test_an_upload_killed_at_its_end_is_whole(url: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "run", 6)
    upload_killed(folder, url, "upload end", tmp_path / "fired")
    assert newest(url) == "step-00000006"
    assert upload(folder, url) == 0
    assert sorted(paths(url)) == sorted(f"step-00000006/{path.name}" for path in folder.iterdir())


@pytest.mark.parametrize("torn", [True, False])
def test_steps_that_are_made_again_replace_those_of_the_same_size(
    url: str, tmp_path: Path, torn: bool
) -> None:
    before = write_checkpoint(tmp_path / "before", 6, seed=1)
    if torn:
        upload_killed(before, url, "upload manifest", tmp_path / "fired")
    else:
        upload(before, url)
    folder = write_checkpoint(tmp_path / "run", 6, seed=2)
    upload(folder, url)
    found = fetch(url, tmp_path / "again")
    assert found is not None
    assert same(folder, found)


def test_what_is_missing_is_sent_and_what_is_old_or_torn_is_deleted(url: str, tmp_path: Path) -> None:
    run, rule = tmp_path / "run", Retention(keep_last=2, keep_every=4)
    for step in (2, 4, 5, 6, 8):  # 5 is about to be deleted
        write_checkpoint(run, step, best=(2, 0.5))
    lost = write_checkpoint(tmp_path / "elsewhere", 7)
    upload_killed(lost, url, "upload manifest", tmp_path / "fired")
    sent = send(run, url, rule)
    assert sorted(sent) == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    assert [each.step for each in stored(open_store(url))] == [2, 4, 6, 8]
    assert send(run, url, rule) == {}
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    write_checkpoint(run, 9, best=(9, 0.6))
    assert sorted(send(run, url, rule)) == ["step-00000009"]
    assert [each.step for each in stored(open_store(url))] == [4, 8, 9]
    assert all(each.is_complete for each in stored(open_store(url)))


def damage(url: str, name: str, step: int = 6) -> None:
    """Change one byte of an object."""
    store, path = open_store(url), f"step-{step:08d}/{name}"
    content = bytearray(store.get(path))
    content[len(content) // 2] ^= 1
    store.put(path, bytes(content))


def test_a_damaged_copy_is_passed_over_for_the_one_before(url: str, tmp_path: Path) -> None:
    for step in (3, 6):
        write_checkpoint(tmp_path / "run", step)
    send(tmp_path / "run", url, KEEP)
    damage(url, "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    found = fetch(url, tmp_path / "again")
    assert found is not None
    assert found.name == "step-00000003"
    assert [path.name for path in found.parent.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("after", [-1, 3])
def test_a_damaged_copy_displaces_no_good_one(url: str, tmp_path: Path, after: int) -> None:
    """The run goes on from step 3, fetched or here, and comes to step 4."""
    for step in (2, 3, 6):
        write_checkpoint(tmp_path / "run", step)
    send(tmp_path / "run", url, KEEP)
    damage(url, "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    if after < 0:
        assert fetch(url, tmp_path / "again") is not None
    else:
        with pytest.raises(DamagedError):
            fetch(url, tmp_path / "again", after=after)
        write_checkpoint(tmp_path / "again", 3)
    assert newest(url) == "step-00000003"
    write_checkpoint(tmp_path / "again", 4)
    send(tmp_path / "again", url, Retention(keep_last=2))
    assert [each.step for each in stored(open_store(url))] == [3, 4]


def test_all_that_is_left_is_not_deleted_for_being_damaged(url: str, tmp_path: Path) -> None:
    """Else the second start would find nothing, and begin anew."""
    upload(write_checkpoint(tmp_path / "run", 6), url)
    damage(url, "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    for _ in range(2):
        with pytest.raises(
            DamagedError, match=r"step-00000006/zero_pp_rank_1\S+ has sha256 \w{12}\.\.\., not"
        ):
            fetch(url, tmp_path / "again")
    open_store(url).delete(["step-00000006/mp_rank_00_model_states.pt"])
    with pytest.raises(DamagedError, match=r"mp_rank_00_model_states\.pt is missing"):
        fetch(url, tmp_path / "again")


@pytest.mark.parametrize("key", ["../../escaped", "/tmp/escaped"])
def test_a_list_that_names_files_outside_is_refused(url: str, tmp_path: Path, key: str) -> None:
    folder = write_checkpoint(tmp_path / "run", 6)
    upload(folder, url)
    sums = json.loads((folder / "checksums.json").read_text())
    open_store(url).put("step-00000006/checksums.json", json.dumps({**sums, key: "0" * 64}).encode())
    with pytest.raises(DamagedError, match="is no file of a checkpoint"):
        fetch(url, tmp_path / "again")
    assert not list(tmp_path.rglob("escaped"))


def test_a_place_of_another_run_is_refused(url: str, tmp_path: Path) -> None:
    upload(write_checkpoint(tmp_path / "run", 6), url)
    write_checkpoint(tmp_path / "other", 9, run="other")
    with pytest.raises(OtherRunError, match="holds checkpoints of the run 'test', not of 'other'"):
        send(tmp_path / "other", url, KEEP, run="other")
    with pytest.raises(OtherRunError):
        fetch(url, tmp_path / "other", run="other")
    assert newest(url) == "step-00000006"


def test_no_message_shows_a_secret(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "run", 6)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    with pytest.raises(ValueError, match=r"s3://bucket/x\S* (is denied|cannot be reached)") as caught:
        upload(folder, f"{server.url}/x")
    assert "planted-secret" not in str(caught.value)
    path = tmp_path / "config.yaml"
    tree = {**SMALL, "run_dir": "x", "data": {**SMALL["data"], "shards": "x"}}
    for wrong in (
        "s3://key:planted-secret@bucket/x",
        "az://c/x?sig=planted-secret",
        "https://planted-secret/x",
    ):
        path.write_text(yaml.safe_dump({**tree, "checkpoint": {"upload": wrong}}))
        with pytest.raises(ValueError, match=r"checkpoint\.upload") as refused:
            load_run_config(path)
        assert "planted-secret" not in str(refused.value)


def test_a_failing_upload_is_said_and_made_up_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "store"
    config = run_config(tmp_path / "run", place)
    place.write_text("no folder")
    uploads = Uploads(config)
    write_checkpoint(tmp_path / "run", 3)
    uploads.begin()
    uploads.wait()
    assert capfd.readouterr().err.count("warning: checkpoints could not be uploaded") == 1
    with pytest.raises(RuntimeError, match="the run is complete, but not all of its checkpoints are at"):
        uploads.finish()
    place.unlink()
    write_checkpoint(tmp_path / "run", 6)
    uploads.begin()
    uploads.finish()
    printed = capfd.readouterr()
    assert "uploaded step-00000003, step-00000006 to" in printed.out
    assert sorted(path.name for path in place.iterdir()) == ["step-00000003", "step-00000006"]


SENDING = """
import sys
from pathlib import Path
from segclip.trainer.checkpoints.upload import Uploads, fetch_newer
from segclip.trainer.config import load_run_config
if __name__ == "__main__":
    uploads, folder, fired = Uploads(load_run_config(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    uploads.begin()
    uploads.delete([folder])
    print(folder.is_dir())
    uploads.finish()
    print(len(fired.read_text().splitlines()))
    print(folder.is_dir())
"""


def test_what_is_being_sent_is_not_deleted(tmp_path: Path) -> None:
    save_run_config(run_config(tmp_path / "run", tmp_path / "store"), tmp_path / "config.yaml")
    folder = write_checkpoint(tmp_path / "run", 3)
    (tmp_path / "program.py").write_text(SENDING)
    fault = {"where": "upload file", "rank": 0, "step": 3, "what": "sleep 1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", tmp_path / "config.yaml", folder, tmp_path / "fired"],
        env={**os.environ, FAULTS: json.dumps([fault]), FIRED: str(tmp_path / "fired"), "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "True"
    assert done.stdout.split()[-2:] == ["1", "False"]
    assert newest((tmp_path / "store").as_uri()) == folder.name


def test_a_store_that_does_not_answer_stops_only_a_run_that_has_no_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "store"
    place.write_text("no folder")
    config = run_config(tmp_path / "run", place)
    with pytest.raises(OSError, match="store"):
        fetch_newer(config, None)
    assert fetch_newer(config, write_checkpoint(tmp_path / "run", 3)) is None
    assert "may have a newer checkpoint than step-00000003, but it cannot be had" in capfd.readouterr().err
