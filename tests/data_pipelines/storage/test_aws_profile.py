from __future__ import annotations

from pathlib import Path

import pytest

from segclip.data_pipelines.storage.aws_profile import aws_profile, has_credentials

CREDENTIALS = """
[default]
aws_access_key_id = one
aws_secret_access_key = secret%one
[other]
aws_access_key_id = two
aws_secret_access_key = secret-two
aws_session_token = token
[far]
role_arn = arn:aws:iam::1:role/x
"""
CONFIG = """
[default]
region = eu-central-1
[profile other]
region = us-east-2
endpoint_url = http://store.example:9000
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws" / "config").write_text(CONFIG)
    return {"HOME": str(tmp_path)}


def test_the_default_profile(home: dict[str, str]) -> None:
    assert aws_profile(home) == {
        "aws_access_key_id": "one",
        "aws_secret_access_key": "secret%one",
        "aws_region": "eu-central-1",
    }
    assert has_credentials(home)


def test_another_profile(home: dict[str, str]) -> None:
    assert aws_profile({**home, "AWS_PROFILE": "other"}) == {
        "aws_access_key_id": "two",
        "aws_secret_access_key": "secret-two",
        "aws_session_token": "token",
        "aws_region": "us-east-2",
        "aws_endpoint": "http://store.example:9000",
    }


def test_the_environment_goes_first(home: dict[str, str]) -> None:
    given = {
        "AWS_PROFILE": "other",
        "AWS_ACCESS_KEY_ID": "env",
        "AWS_REGION": "x",
        "AWS_ENDPOINT_URL": "http://y",
    }
    assert aws_profile({**home, **given}) == {}
    assert aws_profile({**home, "AWS_ACCESS_KEY_ID": "env"}) == {"aws_region": "eu-central-1"}


def test_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(CREDENTIALS)
    found = aws_profile({"HOME": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "c")})
    assert found == {"aws_access_key_id": "one", "aws_secret_access_key": "secret%one"}


def test_no_files_give_nothing() -> None:
    assert aws_profile({"HOME": "/nowhere"}) == {}
    assert not has_credentials({"HOME": "/nowhere"})


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("missing", "AWS_PROFILE is 'missing', but neither"),
        ("far", "gets its keys by role_arn, which is not supported"),
    ],
)
def test_profiles_that_give_no_keys(home: dict[str, str], profile: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        aws_profile({**home, "AWS_PROFILE": profile})


def test_a_broken_file_is_named_and_its_content_is_not(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".aws" / "credentials").write_text("aws_secret_access_key = hidden\n")
    with pytest.raises(ValueError, match="credentials is not readable") as refused:
        aws_profile(home)
    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None
