"""The page of all files, each with the first sentence of its docstring: ``python -m docs.make.file_list``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["first_sentence", "page"]

ROOT = Path(__file__).parents[2]
FOLDERS = ("data_pipelines", "kernels", "models", "eval", "trainer", "src/segclip", "benchmarks", "docs/make")
HEAD = """# Every file

With the first sentence that it says of itself. [The map](index.md#map) has the main ones.
"""


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in Markdown; empty if it has none."""
    text = " ".join(
        (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
    )
    end = min((text.index(stop) for stop in (". ", ": ``python") if stop in text), default=len(text))
    return text[:end].rstrip(".").replace("``", "`").replace("|", "\\|")


def _folders() -> Iterator[Path]:
    """Each folder, and the packages in it."""
    for name in FOLDERS:
        yield ROOT / name
        # In src/segclip these are links to folders that have had their turn.
        yield from sorted(
            path.parent for path in (ROOT / name).glob("*/__init__.py") if not path.parent.is_symlink()
        )


def page() -> str:
    """Markdown."""
    parts = [HEAD]
    for folder in _folders():
        parts.append(f"## {folder.relative_to(ROOT)}\n\n| | |\n|---|---|")
        for path in sorted(folder.glob("*.py")):
            said = first_sentence(path)
            if said:
                parts.append(f"| `{path.name}` | {said} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page())
