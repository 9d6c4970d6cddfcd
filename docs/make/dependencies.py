"""Drawings of what imports what, from the imports themselves: ``python -m docs.make.dependencies FOLDER``.

``packages`` has a box for each package and an arrow for each pair with imports between them, with their number.
``modules`` has all modules of one: each stands below those that import it. Arrows that a longer way replaces are left
out.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import grimp

from docs.make.drawing import Drawing

__all__ = ["PACKAGES", "modules", "packages"]

# Left edge, width and row of each box: free lanes are left for arrows that pass a row.
BOXES = {
    "trainer": (40, 820, 0), "eval": (40, 260, 1), "data_pipelines": (600, 260, 1),
    "models": (330, 240, 2), "kernels": (300, 240, 3), "shared": (40, 820, 4),
}  # fmt: skip
PACKAGES = tuple(name for name in BOXES if name != "shared")
LANES = {
    ("trainer", "eval"): 170, ("trainer", "data_pipelines"): 730, ("trainer", "models"): 450,
    ("trainer", "kernels"): 315, ("trainer", "shared"): 585,
    ("eval", "shared"): 120, ("data_pipelines", "shared"): 730, ("models", "kernels"): 420,
    ("models", "shared"): 555, ("kernels", "shared"): 420,
}  # fmt: skip
COLOURS = {
    "trainer": "#fde2c4",
    "eval": "#d7ecd9",
    "data_pipelines": "#d5e6f7",
    "models": "#f6d5d9",
    "kernels": "#e6dcf4",
    "shared": "#ececec",
}
WHAT = {
    "trainer": "the loop, ZeRO, checkpoints, tracking",
    "eval": "benchmarks, inference, metrics, pictures",
    "data_pipelines": "object storage, shards, batches",
    "models": "the network and its losses",
    "kernels": "its own operations, torch and Triton",
    "shared": "keyed_random, tokenizer, console: single files",
}


@cache
def _imports() -> dict[str, frozenset[str]]:
    """What each module imports at run time, names without ``segclip.``."""
    graph = grimp.build_graph("segclip", exclude_type_checking_imports=True, cache_dir=None)
    packages = {module.rpartition(".")[0] for module in graph.modules}
    return {
        module.removeprefix("segclip."): frozenset(
            other.removeprefix("segclip.") for other in graph.find_modules_directly_imported_by(module)
        )
        for module in graph.modules
        # Packages hold no code, but for the names that `segclip` itself hands out.
        if module not in packages and not module.startswith("segclip.configs")
    }


def _package(module: str) -> str:
    head = module.partition(".")[0]
    return head if head in COLOURS else "shared"


def packages() -> str:
    """SVG of the packages."""
    counts = Counter(
        (_package(one), _package(other))
        for one, others in _imports().items()
        for other in others
        if _package(one) != _package(other)
    )
    sizes = Counter(
        _package(module) for module in _imports() if module.count(".") or _package(module) == "shared"
    )
    height, gap = 58.0, 56.0
    drawing = Drawing(900, 5 * (height + gap) - gap + 20, "Packages of segclip and the imports between them")
    tops = {name: 10 + row * (height + gap) for name, (_, _, row) in BOXES.items()}
    for (one, other), count in sorted(counts.items()):
        lane = LANES.get((one, other))
        # Without a lane: from the middle of one box to the middle of the other.
        x, u = (
            (lane, lane)
            if lane
            else (BOXES[one][0] + BOXES[one][1] / 2, BOXES[other][0] + BOXES[other][1] / 2)
        )
        y, v = tops[one] + height, tops[other]
        if tops[one] == tops[other]:  # beside each other
            near, far = sorted((one, other), key=lambda name: BOXES[name][0])
            x, u = BOXES[near][0] + BOXES[near][1], BOXES[far][0]
            x, u = (x, u) if one == near else (u, x)
            drawing.arrow((x, v + height / 2), (u, v + height / 2), width=1 + count**0.5 / 3, colour="#888")
            drawing.text(x + (u - x) * 0.3, v + height / 2 - 10, str(count), size=12)
            continue
        drawing.arrow(
            (x, y), (u, v), width=1 + count**0.5 / 3, colour="#888", bend=0 if lane else (v - y) / 2
        )
        drawing.text(
            x + (u - x) * 0.7 + 8, y + gap * (0.75 if x != u else 0.5), str(count), size=12, anchor="start"
        )
    for name, (x, width, _) in BOXES.items():
        y = tops[name]
        drawing.box(x, y, width, height, COLOURS[name], "#777", 8)
        drawing.text(x + width / 2, y + 20, f"{name} ({sizes[name]} files)", size=15, bold=True)
        drawing.text(x + width / 2, y + 41, WHAT[name], size=12, colour="#444")
    return drawing.svg()


def modules(package: str) -> str:
    """SVG of the modules of a package."""
    row, gap, room = 30.0, 26.0, 1000.0
    places: dict[str, tuple[float, float, float]] = {}
    y = gap / 2
    for layer in _layers(package):
        for line in _lines(layer, room):
            widths = [_width(module) for module in line]
            space = (room - sum(widths)) / (len(line) + 1)
            x = space
            for module, width in zip(line, widths, strict=True):
                places[module] = (x, y, width)
                x += width + space
            y += row
        y += gap
    drawing = Drawing(room, y - gap / 2, f"Modules of segclip.{package} and the imports between them")
    drawing.box(0, 0, room, y, COLOURS[package], radius=8)
    for one, others in _reduced(set(places)).items():
        for other in sorted(others):
            (x, v, width), (u, w, wide) = places[one], places[other]
            drawing.arrow((x + width / 2, v + 22), (u + wide / 2, w), colour="#777", width=0.8, bend=gap)
    for module, (x, v, width) in places.items():
        drawing.box(x, v, width, 22, "white", "#777", 4)
        drawing.text(x + width / 2, v + 11, _label(module), size=12)
    return drawing.svg()


def _label(module: str) -> str:
    """Its name within its package."""
    return module.partition(".")[2] or module


def _width(module: str) -> float:
    return 14 + 7.0 * len(_label(module))


def _lines(layer: list[str], room: float) -> list[list[str]]:
    """A layer in as many lines as it needs."""
    lines: list[list[str]] = [[]]
    for module in layer:
        if sum(_width(each) + 8 for each in [*lines[-1], module]) > room:
            lines.append([])
        lines[-1].append(module)
    return lines


def _within(members: set[str]) -> dict[str, set[str]]:
    """Imports between these modules; of two that import each other (one of them when it runs), the first by name."""
    edges = {
        one: {other for other in _imports()[one] if other in members and other != one}
        for one in sorted(members)
    }
    for one in sorted(edges):
        for other in sorted(edges[one]):
            if one in _reached(other, edges):
                edges[max(one, other)].discard(min(one, other))
    return edges


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def _reduced(members: set[str]) -> dict[str, set[str]]:
    """The imports that no longer way of imports replaces."""
    edges = _within(members)
    return {
        one: {
            other
            for other in others
            if not any(other in _reached(between, edges) for between in others - {other})
        }
        for one, others in edges.items()
    }


def _layers(package: str) -> list[list[str]]:
    """Modules by the length of the longest way to them from one that no other of the package imports."""
    members = {m for m in _imports() if _package(m) == package and (m.count(".") or package == "shared")}
    edges = _within(members)

    @cache
    def depth(module: str) -> int:
        return max((depth(one) + 1 for one in members if module in edges[one]), default=0)

    layers: list[list[str]] = [[] for _ in range(max(map(depth, members)) + 1)]
    for module in sorted(members):
        layers[depth(module)].append(module)
    # Each layer in the order of the middle of those that import its modules: fewer lines cross.
    for above, layer in pairwise(layers):
        place = {module: number for number, module in enumerate(above)}

        def middle(module: str, place: dict[str, int] = place) -> float:
            own = [place[one] for one in place if module in edges[one]]
            return sum(own) / len(own) if own else len(place) / 2

        layer.sort(key=middle)
    return layers


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "packages.svg").write_text(packages(), encoding="utf-8")
    for name in PACKAGES:
        (folder / f"{name}.svg").write_text(modules(name), encoding="utf-8")
