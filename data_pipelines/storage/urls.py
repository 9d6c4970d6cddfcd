"""Where objects lie: URLs, and paths of the local disk in their place."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from segclip.credentials import check_no_credentials
from segclip.data_pipelines.storage.pipes import check_pipe

__all__ = ["CREDENTIALS", "local_path", "normalise_url"]

SCHEMES = ("file", "s3", "gs", "az", "https", "http")
CREDENTIALS = (
    "credentials come from the environment (such as AWS_ACCESS_KEY_ID, AZURE_STORAGE_SAS_KEY), never from a "
    "URL"
)
"""Where a store's credentials come from."""


def normalise_url(url: str, *, allow_pipe: bool = False) -> str:
    """A URL for ``url``, which may also be a path of the local disk.

    Args:
        url: what the user gave.
        allow_pipe: let ``pipe:COMMAND`` pass.

    Raises:
        ValueError: empty, of a scheme that is not supported, or with a password or a signature in it, which would
            end up in configurations, manifests and logs.
    """
    if not url:
        raise ValueError("the data URL is empty: give a folder or a URL such as s3://bucket/prefix")
    if url.startswith("pipe:"):
        return check_pipe(url, allow_pipe)
    scheme, separator, _ = url.partition("://")
    if not separator:
        return Path(url).expanduser().absolute().as_uri()
    check_no_credentials(url, CREDENTIALS)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} of {url!r} is not supported: use one of {', '.join(SCHEMES)}")
    if scheme == "file" and urlsplit(url).netloc not in ("", "localhost"):
        # file://relative/path would silently drop its first part.
        raise ValueError(f"{url!r} names a host: write file:///absolute/path with three slashes")
    return url.rstrip("/")


def local_path(url: str) -> Path | None:
    """The folder a ``file://`` URL names, None for any other scheme."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
