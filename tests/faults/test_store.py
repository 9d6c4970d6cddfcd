"""A real S3 server behind a proxy that spoils some of its answers, goes away for a while, or for good."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segclip.data_pipelines.storage.config import StoreConfig
from segclip.data_pipelines.storage.retry import RetryPolicy
from segclip.data_pipelines.storage.s3_server import S3Server
from segclip.data_pipelines.storage.store import upload
from tests.faults.conftest import Run
from tests.faults.data_runs import (
    STEPS,
    complete,
    new_run,
    scenes,  # noqa: F401
    stops,
    store,  # noqa: F401
    untouched,  # noqa: F401
)
from tests.faults.faulty_proxy import (
    Answer,
    Fault,
    FaultyProxy,
    Handler,
    away,
    error_status,
    faulty_proxy,
    reset,
    silence,
)
from tests.run_files import metrics
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow

# Of each worker nothing is fetched ahead, so that shards are asked for all through the run.
FETCHING = {"stall_seconds": 1.0, "prefetch_mib": 0}
# Shard that is asked for when more than half of the run is over.
LATE = 14


@pytest.fixture
def proxy(store: S3Server, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Before a server that holds the scenes; requests for shards may fail."""
    with monkeypatch.context() as direct:
        for name, value in store.environment.items():
            direct.setenv(name, value)
        upload(scenes, f"{store.url}/scenes")
    with faulty_proxy(store.endpoint) as running:
        running.matches = lambda method, path: method == "GET" and path.endswith(".tar")
        yield running


@pytest.fixture
def environment(store: S3Server, proxy: FaultyProxy) -> dict[str, str]:
    """What ranks need to read through the proxy."""
    return {**store.environment, "AWS_ENDPOINT_URL": proxy.url}


def test_what_a_store_stutters_is_asked_again_and_changes_nothing(
    proxy: FaultyProxy,
    environment: dict[str, str],
    untouched: Run,
    tmp_path: Path,
) -> None:
    faults: dict[int, tuple[Fault, str]] = {
        2: (error_status(500), "status_500"),
        4: (error_status(503, "SlowDown"), "status_503"),
        7: (reset, "connection"),
        10: (silence, "timeout"),
        LATE: (error_status(500), "status_500"),
    }
    proxy.plan = {number: fault for number, (fault, _) in faults.items()}
    run = new_run(tmp_path, "s3://bucket/scenes", workers=1, store=FETCHING)
    complete(run, environment=environment)
    assert sorted(proxy.fired) == sorted(faults)
    retries = {
        name: n for name, n in metrics(run.folder)[-1].items() if name.startswith("data/store/retries/")
    }
    causes = [cause for _, cause in faults.values()]
    assert retries == {f"data/store/retries/{cause}": causes.count(cause) for cause in causes}
    run.must_equal(untouched)


@pytest.mark.parametrize(
    ("fault", "words", "retries"),
    [
        (error_status(500), ("cannot be reached", "500", "Check AWS_ENDPOINT_URL"), 3),
        (
            error_status(400, "ExpiredToken"),
            ("is denied (ExpiredToken): the credentials have expired: renew them",),
            0,
        ),
    ],
    ids=["broken", "expired"],
)
def test_a_store_that_fails_for_good_stops_all_ranks_with_a_checkpoint(
    proxy: FaultyProxy,
    environment: dict[str, str],
    untouched: Run,
    tmp_path: Path,
    fault: Fault,
    words: tuple[str, ...],
    retries: int,
) -> None:
    def lasting(handler: Handler, ask: Callable[[], Answer]) -> None:
        proxy.always = fault
        fault(handler, ask)

    proxy.plan = {LATE: lasting}
    run = new_run(tmp_path, "s3://bucket/scenes", workers=1, store={**FETCHING, "retries": 3})
    error = stops(run, environment=environment)
    assert re.search(r"s3://bucket/scenes/0000\d.tar", error)
    for word in words:
        assert word in error
    assert proxy.fired == [LATE]
    # Each rank may read two shards at a time.
    assert retries + 1 <= proxy.asked - LATE <= 4 * (retries + 1)
    reached = len(metrics(run.folder))
    assert 0 < reached < STEPS
    assert run.checkpoints() == [f"step-{reached:08d}"]

    proxy.always, proxy.plan = None, {}
    complete(run, environment=environment)
    run.must_equal(untouched)


def test_a_store_that_is_away_for_a_while_is_waited_for(
    proxy: FaultyProxy,
    environment: dict[str, str],
    untouched: Run,
    tmp_path: Path,
) -> None:
    proxy.plan = {LATE: away(4.0)}
    run = new_run(tmp_path, "s3://bucket/scenes", workers=1, store=FETCHING)
    text = complete(run, environment=environment)
    assert proxy.fired == [LATE]
    assert re.search(r"s3://bucket/scenes gives nothing for [1-4] s \(connection\); it is asked again", text)
    assert "s3://bucket/scenes answers again" in text
    last = metrics(run.folder)[-1]
    assert last["data/store/retries/connection"] >= 3
    assert max(row["data/wait_seconds"] for row in metrics(run.folder)) > 2.0
    run.must_equal(untouched)


def test_by_default_a_store_may_be_away_for_a_minute() -> None:
    """One that refuses connections at once, which counts attempts the fastest; delays as short as jitter makes them."""
    settings = StoreConfig()
    policy = RetryPolicy(settings.retries, settings.retry_seconds)
    assert sum(policy.delay(failures, 1.0) for failures in range(1, settings.retries + 1)) > 60
    assert settings.retry_seconds > 60


def test_a_full_cache_costs_the_cache_and_not_the_run(
    proxy: FaultyProxy,
    environment: dict[str, str],
    untouched: Run,
    tmp_path: Path,
) -> None:
    """Room for about one shard and a half."""
    with small_disk(100) as disk:
        run = new_run(
            tmp_path, "s3://bucket/scenes", workers=1, store={**FETCHING, "cache_dir": str(disk / "cache")}
        )
        text = complete(run, environment=environment)
        assert len(list((disk / "cache" / "shards").iterdir())) == 1
        assert not list((disk / "cache" / "partial").iterdir())
    # Once for each worker.
    said = re.findall(
        rf"({disk}/cache/partial/\w+) cannot be written: No space left on device \(([\d,]+) bytes wanted, "
        r"[\d,]+ are free there\); the run goes on",
        text,
    )
    assert 1 <= len(said) <= 2
    assert text.count("No space left on device") == len(said)
    last = metrics(run.folder)[-1]
    assert last["data/cache/unwritten"] > len(said)
    assert last["data/cache/hits"] > 0
    run.must_equal(untouched)
