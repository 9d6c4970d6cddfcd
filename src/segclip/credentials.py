"""No secrets in URLs: what a configuration says is kept in run folders, checkpoints, manifests, MLflow and logs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["check_no_credentials", "without_credentials"]

_USER = re.compile(r"(?<=://)[^/\s'\"]+@")


def check_no_credentials(url: str, remedy: str) -> None:
    """Refuse a URL with a user, a password, a signature or a fragment, without repeating it.

    Args:
        url: a path passes, and so does a command (``pipe:``), which its user has to allow.
        remedy: where such things come from instead.

    Raises:
        ValueError: the URL holds one; names scheme and host alone.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file" or url.startswith("pipe:"):
        return
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"a URL at {scheme}://{parts.hostname or ''} holds a user, a password or a query: {remedy}"
        )


def without_credentials(text: str) -> str:
    """``text`` with user and password taken out of all URLs in it."""
    return _USER.sub("", text)
