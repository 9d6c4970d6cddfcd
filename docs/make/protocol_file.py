"""The page of all fields of a protocol file, from the classes that check it: ``python -m docs.make.protocol_file``."""

from __future__ import annotations

from docs.make.configuration import tables
from segclip.eval.protocol import Protocol

__all__ = ["page"]

HEAD = """# Fields of a protocol file

Every key that a protocol (`configs/protocols/*.yaml`, or a file of yours) may hold, from the classes that check it.
"""


def page() -> str:
    """Markdown."""
    return HEAD + "\n" + tables(Protocol)


if __name__ == "__main__":
    print(page())
