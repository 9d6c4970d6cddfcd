from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segclip.data_pipelines.errors import StoreError
from segclip.data_pipelines.storage import store
from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.store import Entry, open_store, read_before_fork, upload


def test_paths_and_urls_name_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with space"
    store = open_store(str(folder), create=True)
    store.put("a/b.bin", b"content")
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), folder.as_uri(), "with space", f"{folder.as_uri()}/"):
        assert open_store(name).get("a/b.bin") == b"content"
        assert read_before_fork(name, "a/b.bin") == b"content"
    assert list(store.list()) == [Entry("a/b.bin", 7)]


def test_a_signature_in_a_message_of_the_client_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account's shared signature is part of the URL of each request."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=2024&sig=hidden%3D")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        settings = StoreConfig(retries=0, connect_seconds=1)
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            open_store("az://container/set", settings=settings).get("x.tar")
    assert "hidden" not in str(caught.value)
    message = store._short(
        OSError('Error performing GET https://h/c/x.tar?sv=1&sig=hidden in 1s - "https://h?sig=hidden"')
    )
    assert message == 'Error performing GET https://h/c/x.tar?... in 1s - "https://h?..."'


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the data folder .*/nowhere does not exist"):
        open_store(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"/x.tar does not exist"):
        open_store(str(tmp_path)).get("x.tar")
    with pytest.raises(ValueError, match=r"/manifest.json does not exist"):
        read_before_fork(str(tmp_path), "manifest.json")


@pytest.mark.parametrize("path", ["/etc/hostname", "../beside", "a/../../beside"])
def test_a_path_stays_below_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "beside").write_text("secret")
    (tmp_path / "store" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="leads out of file:"):
        open_store(str(tmp_path / "store")).get(path)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    accepted.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for each in accepted:
            each.close()


def _use_s3(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key-of-a-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_server_that_is_down_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        _use_s3(monkeypatch, unused.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(
            ValueError, match=r"s3://b/p/manifest.json cannot be reached.*AWS_ENDPOINT_URL"
        ) as caught:
            read_before_fork("s3://b/p", "manifest.json")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert "secret-of-a-test" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, silent_port: int
) -> None:
    _use_s3(monkeypatch, silent_port)
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot be reached"):
        read_before_fork("s3://b/p", "manifest.json")
    assert time.monotonic() - start < 11


def test_reading_before_a_fork_leaves_the_client_unstarted(tmp_path: Path) -> None:
    """A forked child of a process that used the client would hang: it gets an error instead."""
    (tmp_path / "a").write_bytes(b"x")
    code = f"""
import os
from segclip.data_pipelines.storage import store
assert store.read_before_fork({str(tmp_path)!r}, "a") == b"x"
assert not store.client_started()
opened = store.open_store({str(tmp_path)!r})
if os.fork() == 0:
    assert opened.get("a") == b"x"
    os._exit(0)
assert os.wait()[1] == 0
opened.get("a")
assert store.client_started()
if os.fork() == 0:
    try:
        opened.get("a")
    except RuntimeError as error:
        assert "forked" in str(error)
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def test_upload_copies_a_folder_manifests_last(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "part").mkdir(parents=True)
    for name in ("manifest.json", "z.tar", "part/a.tar"):
        (source / name).write_text(name)
    order: list[str] = []
    assert upload(source, str(tmp_path / "target"), lambda entry: order.append(entry.path)) == 3
    assert order == ["part/a.tar", "z.tar", "manifest.json"]
    assert (tmp_path / "target" / "part" / "a.tar").read_text() == "part/a.tar"
    with pytest.raises(ValueError, match="does not exist"):
        upload(tmp_path / "nowhere", str(tmp_path / "target"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        upload(tmp_path / "empty", str(tmp_path / "target"))
