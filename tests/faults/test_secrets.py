"""Credentials are used and recorded nowhere: what a run leaves and says is searched for planted ones, byte by byte."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from segclip.data_pipelines.storage.s3_server import SECRET_KEY, s3_server
from segclip.data_pipelines.storage.store import upload
from segclip.rendezvous import free_port
from segclip.trainer.config import load_run_config
from tests.faults.conftest import Run

PLANTED = {
    name: f"planted/{name.lower().replace('_', '+')}"
    for name in (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "HF_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    )
}
PASSWORD = "planted-password"


def forms(secret: str) -> set[bytes]:
    """A secret as it is, as in a URL, and as in the header of a request, wherever it begins there."""
    raw = secret.encode()
    coded = {base64.b64encode(b"x" * before + raw)[4:-4] for before in range(3)}
    return {raw, quote(secret, safe="").encode(), secret.encode("utf-16-le"), *coded}


def holding(folder: Path, secrets: list[str]) -> list[tuple[str, bytes]]:
    wanted = {form for secret in secrets for form in forms(secret)}
    return [
        (str(path.relative_to(folder)), form)
        for path in folder.rglob("*")
        if path.is_file()
        for form in wanted
        if form in path.read_bytes()
    ]


@pytest.mark.slow
def test_nothing_that_a_run_leaves_holds_a_secret(run: Run, shards: Path, tmp_path: Path) -> None:
    """Keys from the environment, then from ``~/.aws``; MLflow in a file, then at a server that is down."""
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path / "s3", bucket="bucket") as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        upload(shards, f"{server.url}/shards")
        keys = {key: server.environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        (home / ".aws" / "credentials").write_text(
            "[default]\n" + "".join(f"{key.lower()} = {value}\n" for key, value in keys.items())
        )
        settings = (
            f"data.shards={server.url}/shards",
            "tracking.enabled=true",
            "tracking.system_metrics=false",
        )
        environment = {**server.environment, **PLANTED, "HOME": str(home)}
        codes, first = run(*settings, "train.steps=2", environment=environment)
        assert codes == [0, 0], first
        for key in keys:
            del environment[key]
        environment["MLFLOW_TRACKING_URI"] = f"http://me:{PASSWORD}@127.0.0.1:{free_port()}"
        codes, second = run(*settings, "tracking.flush_seconds=1", "--debug", environment=environment)
        assert codes == [0, 0], second
        assert "MLflow is not available" in second
        assert "127.0.0.1" in second[second.index("MLflow is not available") :]
    (run.folder / "output").write_text(first + second)
    assert "output" in {name for name, _ in holding(run.folder, ["resuming from"])}
    # What is not secret is found by the same search, in each kind of file.
    found = {name for name, _ in holding(run.folder, ["s3://bucket/shards"])}
    assert {"config.yaml", "mlflow.db", "mlflow/records.jsonl", "run.lock"} <= found
    assert "checkpoints/step-00000006/config.yaml" in found
    parameters = {name for name, _ in holding(run.folder, ["token_embedding"])}
    assert "checkpoints/step-00000006/mp_rank_00_model_states.pt" in parameters
    assert holding(run.folder, [SECRET_KEY, PASSWORD, *PLANTED.values()]) == []


@pytest.mark.slow
def test_a_url_with_a_password_is_refused_and_not_repeated(run: Run, tmp_path: Path) -> None:
    for setting, told in (
        (
            f"data.shards=s3://me:{PASSWORD}@bucket/shards",
            "error: {config}: a URL at s3://bucket holds a user",
        ),
        (f"tracking.uri=http://me:{PASSWORD}@host", "error: {config}: a URL at http://host holds a user"),
    ):
        for words in ((), ("--debug",)):
            codes, text = run(setting, *words)
            assert 0 not in codes
            assert words or told.format(config=run.config) in text
            (run.folder / "output").write_text(text)
            assert holding(run.folder, [PASSWORD]) == []
    with pytest.raises(ValueError, match="a URL at https://host holds") as caught:
        load_run_config(
            run.config,
            [f"data.sources=[{{name: a, shards: 'https://host/?{PASSWORD}'}}]", "data.shards=null"],
        )
    assert PASSWORD not in str(caught.value) + str(caught.value.__cause__)
