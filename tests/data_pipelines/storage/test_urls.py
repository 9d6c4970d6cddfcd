from __future__ import annotations

import pytest

from segclip.data_pipelines.storage.urls import normalise_url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the data URL is empty"),
        ("pipe:cat x", "refused"),
        ("ftp://host/x", "scheme 'ftp' .* use one of file, s3"),
        ("file://relative/x", "three slashes"),
    ],
)
def test_bad_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hidden@example.org/set",
        "https://hidden@example.org/set",
        "s3://key:hidden@bucket/set",
        "https://example.org/set?X-Amz-Signature=hidden",
        "https://example.org/set#hidden",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"never from a URL") as caught:
        normalise_url(url)
    assert "hidden" not in str(caught.value)
