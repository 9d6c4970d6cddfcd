"""Hooks of MkDocs (``mkdocs.yml``): pages that code writes, files outside ``docs/`` that pages link, and formulas.

The pages read alike in the repository and on the site. A link that leads out of ``docs/`` (``../trainer/step.py``)
becomes one to a page that shows that file, or, if it is a module that writes a page (``make/configuration.py``), to
that page; README, CONTRIBUTING and their like are pages of the site themselves. Drawings are drawn anew; those in
``docs/assets`` are for readers of the repository (``python -m docs.make.dependencies docs/assets``, ``…tiling…``).
Formulas between dollar signs become MathML, which browsers draw without any script.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from functools import partial
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.make import command_lines, configuration, dependencies, figures, file_list, protocol_file, tiling

ROOT = Path(__file__).parents[2]
# Pages of the site that stand elsewhere in the repository.
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
WRITTEN: dict[str, Callable[[], str]] = {
    "configuration.md": configuration.page,
    "protocol_file.md": protocol_file.page,
    "command_lines.md": command_lines.page,
    "figures.md": figures.page,
    "files.md": file_list.page,
    "assets/packages.svg": dependencies.packages,
    **{f"assets/{name}.svg": partial(dependencies.modules, name) for name in dependencies.PACKAGES},
    **{f"assets/{name}": draw for name, draw in tiling.DRAWINGS.items()},
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sbatch": "bash", ".toml": "toml"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\s*\\\[(.*?)\\\]\s*)</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what code writes, and a page for each file of the repository that a page links."""
    for name, place in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / place).read_text(encoding="utf-8")))
    for name, write in WRITTEN.items():
        older = files.get_file_from_path(name)
        if older is not None:
            files.remove(older)
        files.append(File.generated(config, name, content=write()))
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    while waiting:
        for target in _targets(waiting.pop()):
            name = _page_of(target)
            if name.startswith("source/") and files.get_file_from_path(name) is None:
                file = File.generated(config, name, content=_shown(target))
                files.append(file)
                waiting.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    here = _place(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        opening, link, anchor, closing = match.groups()
        target = _resolved(link, here)
        if target is None:
            return match[0]
        return (
            opening
            + posixpath.relpath(_page_of(target), posixpath.dirname(page.file.src_uri) or ".")
            + (anchor or "")
            + closing
        )

    return _outside_fences(markdown, lambda text: LINK.sub(replaced, text))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw formulas."""

    def drawn(match: re.Match[str]) -> str:
        inline, block = match[2], match[3]
        return convert(unescape(inline or block), display="inline" if inline else "block")

    return FORMULA.sub(drawn, html)


def _targets(file: File) -> Iterator[Path]:
    """Files of the repository that a page links."""
    for match in LINK.finditer(FENCE.sub("", file.content_string)):
        target = _resolved(match[2], _place(file.src_uri))
        if target is not None:
            yield target


def _place(name: str) -> Path:
    """Folder of the repository that the links of a page start from."""
    if name.startswith("source/"):
        return (ROOT / name.removeprefix("source/")).parent
    return (ROOT / ELSEWHERE[name]).parent if name in ELSEWHERE else (ROOT / "docs" / name).parent


def _resolved(link: str, here: Path) -> Path | None:
    """The file or folder of the repository that a relative link names, if there is one."""
    if ":" in link or link.startswith("/"):
        return None
    target = Path(os.path.normpath(here / link))
    return target if target.is_relative_to(ROOT) and target.exists() else None


def _page_of(target: Path) -> str:
    """Name on the site of a file of the repository."""
    name = target.relative_to(ROOT).as_posix()
    for page, place in ELSEWHERE.items():
        if name == place:
            return page
    if name.startswith("docs/make/") and f"{target.stem}.md" in WRITTEN:
        return f"{target.stem}.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"source/{name}" if name.endswith(".md") else f"source/{name}.md"


def _shown(target: Path) -> str:
    """Markdown that shows a file or a folder."""
    if target.suffix == ".md":
        return target.read_text(encoding="utf-8")
    title = f"---\nsearch:\n  exclude: true\n---\n# {target.relative_to(ROOT).as_posix()}\n\n"
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir() if path.is_file())
        # A page stands for its file, so links of a folder's page start beside that folder.
        return title + "\n".join(f"- [{name}]({target.name}/{name})" for name in names) + "\n"
    return f"{title}~~~~{LANGUAGES.get(target.suffix, 'text')}\n{target.read_text(encoding='utf-8')}\n~~~~\n"


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """``markdown`` with all but its code blocks changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
