"""Which software made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from segclip.code_version import git_commit

__all__ = ["versions"]

_PACKAGES = ("segclip", "torch", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Version of Python and of the packages that take part, and ``commit`` of the checkout this code runs from, with
    ``+`` behind it if files were changed since.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    commit = git_commit()
    return found if commit is None else {**found, "commit": commit}
