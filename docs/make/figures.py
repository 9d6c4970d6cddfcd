"""The page of figures, from ``benchmarks/results``."""

from __future__ import annotations

from benchmarks.promised import PROMISES, committed_figures, found, shown, state

__all__ = ["page"]

HEAD = """# Figures

What this project set out to reach and what was measured, misses included. Values are those committed in
[benchmarks/results](../benchmarks/results), which also name machine and commit. `python -m benchmarks.all --committed`
prints this table; `make bench` measures anew on your machine.

Unless a row says otherwise: two cores of an AMD EPYC without AVX-512 and bfloat16 units, 23.5 GiB, torch 2.15, November
2026.
**Nothing has been measured on a GPU yet**; the rows that need one are empty, and `make gpu` fills them.
"""


def page() -> str:
    """Markdown."""
    figures = committed_figures()
    parts = [HEAD]
    before = ""
    for promise in PROMISES:
        if promise.subject != before:
            parts.append(
                f"\n## {promise.subject}\n\n| | Measured | Target | Holds | Command, beside |\n|---|---|---|---|---|"
            )
        before = promise.subject
        figure = found(promise, figures)
        beside = f"needs {promise.needs}" if figure is None and promise.needs else f"`{promise.command}`"
        if figure is not None and figure.beside:
            beside += f": {figure.beside}"
        cells = (promise.says, shown(figure), promise.target, state(figure), beside.replace("|", "\\|"))
        parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page())
