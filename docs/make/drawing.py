"""Just enough SVG for the site's drawings."""

from __future__ import annotations

from html import escape

__all__ = ["Drawing"]

FONT = "font-family='system-ui, sans-serif'"


class Drawing:
    """Shapes in the order they are drawn, in units of a pixel."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._width, self._height, self._title = width, height, title
        self._shapes: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        edge: str = "none",
        radius: float = 0,
    ) -> None:
        """A rectangle with its upper left corner at (x, y)."""
        self._shapes.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='{radius}' "
            f"fill='{fill}' stroke='{edge}'/>"
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        colour: str = "#222",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """One line; y is its middle."""
        weight = " font-weight='600'" if bold else ""
        turn = f" transform='rotate(-90 {x:.1f} {y:.1f})'" if turned else ""
        self._shapes.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' dominant-baseline='central' "
            f"font-size='{size}' fill='{colour}' {FONT}{weight}{turn}>{escape(text)}</text>"
        )

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        colour: str = "#555",
        width: float = 1.5,
        head: bool = True,
        bend: float = 0.0,
    ) -> None:
        """A line from start to end, curved where both ends leave downwards (``bend`` is how far they do)."""
        (x, y), (u, v) = start, end
        path = f"M{x:.1f},{y:.1f} C{x:.1f},{y + bend:.1f} {u:.1f},{v - bend:.1f} {u:.1f},{v:.1f}"
        tip = " marker-end='url(#tip)'" if head else ""
        self._shapes.append(
            f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='{width:.1f}'{tip} color='{colour}'/>"
        )

    def svg(self) -> str:
        """The file."""
        tip = (
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
            "markerUnits='userSpaceOnUse' orient='auto'><path d='M0,0 L8,4 L0,8 z' fill='context-stroke'/></marker>"
            "</defs>"
        )
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{self._width:.0f}' height='{self._height:.0f}' "
            f"viewBox='0 0 {self._width:.0f} {self._height:.0f}' role='img'>"
            f"<title>{escape(self._title)}</title>{tip}<rect width='100%' height='100%' fill='white'/>"
            + "\n".join(self._shapes)
            + "</svg>\n"
        )
