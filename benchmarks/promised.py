"""The figures that were promised (``promised.yaml``) beside those that were measured.

A promise names a figure as ``benchmarks.all`` does, "script: figure", or a pattern of several; of several, the worst is
shown. ``python -m benchmarks.promised README.md`` writes the README's table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.report import ROOT, Figure

__all__ = [
    "PROMISES",
    "Promise",
    "committed_figures",
    "found",
    "print_promises",
    "readme_table",
    "shown",
    "state",
    "with_figures",
]

# Columns that the whole table needs so that its words are not cut.
WIDE = 120
# Around the README's table.
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True)
class Promise:
    """One figure that has to be reached."""

    subject: str
    says: str
    figure: str
    """"script: figure", as a pattern of ``fnmatch``."""
    target: str
    """In words, with the direction."""
    needs: str = ""
    """What measuring it takes that few machines have."""
    readme: bool = False
    """Whether the README quotes it."""

    @property
    def command(self) -> str:
        """What measures it."""
        script = self.figure.partition(":")[0]
        return "make quickstart" if script == "quickstart" else f"python -m benchmarks.{script}"


PROMISES = tuple(
    Promise(subject, **each)
    for subject, own in yaml.safe_load(
        Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    ).items()
    for each in own
)


def committed_figures() -> dict[str, Figure]:
    """All figures in ``benchmarks/results``, under "script: figure"."""
    folder = ROOT / "benchmarks" / "results"
    figures: dict[str, Figure] = {}
    for path in sorted(folder.rglob("*.json")):
        script = path.relative_to(folder).parts[0].removesuffix(".json")
        report = json.loads(path.read_text(encoding="utf-8"))
        # A benchmark that lacked what it needs has left its reason there, and no figures.
        figures |= {
            f"{script}: {name}": Figure(**values) for name, values in report.get("figures", {}).items()
        }
    return figures


def found(promise: Promise, figures: Mapping[str, Figure]) -> Figure | None:
    """The figure of a promise: of several the worst, before all one that does not hold; None if none is there."""
    own = [figure for name, figure in figures.items() if fnmatchcase(name, promise.figure)]
    missed = [figure for figure in own if figure.holds is False]
    return max(missed or own, key=lambda figure: _distance(figure.value, promise.target), default=None)


def _distance(value: float, target: str) -> float:
    """How bad a value is beside others, by the direction that its target has in words."""
    middle, tolerance, _ = target.partition("±")
    if tolerance:
        return abs(value - float(middle))
    return -value if target.startswith("≥") else value


def state(figure: Figure | None) -> str:
    """ "yes", "NO", "" for one without a target, "-" for one that has not been measured."""
    return "-" if figure is None else {None: "", True: "yes", False: "NO"}[figure.holds]


def shown(figure: Figure | None) -> str:
    """Value and unit."""
    return "not measured" if figure is None else f"{figure.value:.4g} {figure.unit}".rstrip()


def print_promises(title: str, figures: Mapping[str, Figure], console: Console | None = None) -> None:
    """All promises with what was measured, as a table; in a narrow terminal without what measured them."""
    console = console or Console()
    wide = console.width >= WIDE
    table = Table(title=title, title_justify="left")
    table.add_column("subject", no_wrap=True)
    table.add_column("figure", overflow="fold")
    for column in ("value", "target", "holds"):
        table.add_column(column, justify="right", no_wrap=wide or column == "holds")
    if wide:
        table.add_column("measured by, beside", overflow="fold")
    before = ""
    for promise in PROMISES:
        figure = found(promise, figures)
        if before and promise.subject != before:
            table.add_section()
        lack = f"needs {promise.needs}" if promise.needs else promise.command
        beside = lack if figure is None else "; ".join(filter(None, (promise.command, figure.beside)))
        table.add_row(
            "" if promise.subject == before else promise.subject,
            promise.says, shown(figure), promise.target, state(figure), *([beside] if wide else []),
        )  # fmt: skip
        before = promise.subject
    console.print(table)
    if not wide:
        console.print(f"A terminal of {WIDE} columns or more shows what measured each, too.")


def readme_table() -> str:
    """The committed figures that the README quotes, in Markdown."""
    figures = committed_figures()
    rows = ["| | Measured | Target | Command |", "|---|---|---|---|"]
    for promise in PROMISES:
        if promise.readme:
            figure = found(promise, figures)
            mark = " (missed)" if state(figure) == "NO" else ""
            command = f"`{promise.command}`" if figure else f"needs {promise.needs}"
            rows.append(
                f"| {promise.subject}: {promise.says} | {shown(figure)}{mark} | {promise.target} | {command} |"
            )
    return "\n".join(rows) + "\n"


def with_figures(text: str) -> str:
    """A README with its table of figures as they are committed.

    Raises:
        ValueError: there is no place for the table.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"no {BEGIN} … {END} to write the table between")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_figures(path.read_text(encoding="utf-8")), encoding="utf-8")
