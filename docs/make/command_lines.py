"""The page of all command lines, from their own parsers: ``python -m docs.make.command_lines``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

__all__ = ["page", "parsers", "subparsers"]

ROOT = Path(__file__).parents[2]
# Those that are no entry point of setup.py.
OTHERS = {
    "segclip-eval compare": "segclip.eval.compare",
    "trainer/run.py": "segclip.trainer.run",
    "segclip.trainer.quickstart": "segclip.trainer.quickstart",
}
HEAD = """# Command lines

What each program takes, as it says itself with `--help`. All end with one line and exit code 2 where their user has to
mend something; `--debug` shows the stack trace. [How else a training run ends](cluster.md#how-a-run-ends).
"""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Name and parser of each program, as ``setup.py`` names them, and of the training script."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    modules = dict(re.findall(r'"(segclip-[\w-]+) = (segclip\.[\w.]+):main"', text)) | OTHERS
    return {name: import_module(module).build_parser() for name, module in modules.items()}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name and parser of each subcommand."""
    return {
        name: inner
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, inner in action.choices.items()
    }


def page() -> str:
    """Markdown."""
    parts = [HEAD]
    with mock.patch.dict(os.environ, COLUMNS="110"):
        for name, parser in parsers().items():
            parts.append(f"## {name}\n")
            parts.extend(_helps(parser))
    return "\n".join(parts)


def _helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"```text\n{parser.format_help()}```\n"
    for name, inner in subparsers(parser).items():
        yield f"### {parser.prog} {name}\n"
        yield from _helps(inner)


if __name__ == "__main__":
    print(page())
