from __future__ import annotations

import pytest

from segclip.credentials import check_no_credentials, without_credentials


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/data/a?b@c",
        "file:///data/a?b@c#d",
        "s3://bucket/prefix@2",
        "pipe:curl https://me:x@host/{}",
        "sqlite:////runs/mlflow.db",
    ],
)
def test_what_has_none(url: str) -> None:
    check_no_credentials(url, "elsewhere")


@pytest.mark.parametrize(
    "url", ["http://me:x@host/a", "s3://x@host", "https://host/?x", "postgresql://x:y@host/db"]
)
def test_what_has_some_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_no_credentials(url, "elsewhere")
    assert str(caught.value) == (
        f"a URL at {url.partition(':')[0]}://host holds a user, a password or a query: elsewhere"
    )


def test_words_without_them() -> None:
    text = "Max retries (url: http://me:p%40ss@host:80/api), see 'https://t@other/' and https://host/a@b or me@host"
    assert without_credentials(text) == (
        "Max retries (url: http://host:80/api), see 'https://other/' and https://host/a@b or me@host"
    )
