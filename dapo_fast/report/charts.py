"""Charts as inline SVG: coloured by the page's CSS variables, so that light and dark need one drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from ``low`` to ``high``, roughly ``about`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick or table entry in at most four significant digits."""
    if value == 0:
        return "0"
    if value < 0:
        return "−" + number(-value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else (f"{value:.3g}", "")
        return mantissa + (f"e{int(exponent)}" if exponent else "")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """0.25 as 25%."""
    return f"{100 * value:.4g}%"


class Chart:
    """One set of axes. Marks are added in drawing order; ``svg`` closes the drawing.

    Series are told apart by class ``s0``, ``s1``, … whose colours the page's CSS sets, and by direct labels.
    """

    def __init__(
        self,
        label: str,
        x: tuple[float, float],
        y: tuple[float, float],
        x_title: str = "",
        y_title: str = "",
        width: int = 400,
        height: int = 250,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_format: Callable[[float], str] = number,
        y_format: Callable[[float], str] = number,
        right: int = 16,
        square: bool = False,
    ) -> None:
        """Axes from ``x[0]`` to ``x[1]`` and ``y[0]`` to ``y[1]`` in data units.

        Args:
            label: What a screen reader says of the whole figure.
            right: Pixels kept free at the right for direct labels.
            square: Make the plot area square, as for probabilities against each other.
        """
        self.label = label
        self._x, self._y = _opened(x), _opened(y)
        x_ticks = nice_ticks(*self._x) if x_ticks is None else x_ticks
        y_ticks = nice_ticks(*self._y, about=4) if y_ticks is None else y_ticks
        widest = max((len(y_format(t)) for t in y_ticks), default=1)
        self.left, self.top, self.bottom = 14 + 7 * widest, 26 if y_title else 10, 44 if x_title else 26
        self.width, self.height, self.right = width, height, right
        if square:
            self.height = width - self.left - right + self.top + self.bottom
        self._parts: list[str] = []
        self._axes(x_title, y_title, x_ticks, y_ticks, x_format, y_format)

    def x(self, value: float) -> float:
        """Pixels of a value along x."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Pixels of a value along y."""
        low, high = self._y
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def _axes(
        self,
        x_title: str,
        y_title: str,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
    ) -> None:
        floor, end = self.height - self.bottom, self.width - self.right
        for tick in y_ticks:
            y = self.y(tick)
            self._parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.text(self.left - 7, y + 4, y_format(tick), "tick", "end")
        self._parts.append(f'<line class="axis" x1="{self.left}" x2="{end}" y1="{floor}" y2="{floor}"/>')
        for tick in x_ticks:
            x = self.x(tick)
            self._parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            self.text(x, floor + 17, x_format(tick), "tick", "middle")
        if x_title:
            self.text((self.left + end) / 2, self.height - 8, x_title, "title", "middle")
        if y_title:
            self.text(2, 13, y_title, "title", "start")

    def text(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> None:
        """Text at pixels."""
        self._parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def note(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> None:
        """Text at data coordinates."""
        self.text(self.x(x), self.y(y), text, kind, anchor)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A polyline through data points."""
        if points:
            path = "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
            self._parts.append(f'<path class="line {kind}" d="{path}"/>')

    def band(self, lows: Sequence[Point], highs: Sequence[Point], kind: str) -> None:
        """The area between two polylines."""
        if lows:
            path = "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in [*lows, *reversed(highs)]) + "Z"
            self._parts.append(f'<path class="band {kind}" d="{path}"/>')

    def dot(self, x: float, y: float, kind: str, tip: str, radius: float = 4.5) -> None:
        """A point that says ``tip`` under the pointer."""
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}"'
        self._parts.append(f'<circle class="dot {kind}" {place}><title>{escape(tip)}</title></circle>')

    def interval(self, x: float, low: float, high: float, kind: str) -> None:
        """A vertical bar from ``low`` to ``high``."""
        place = f'x1="{self.x(x):.1f}" x2="{self.x(x):.1f}"'
        self._parts.append(f'<line class="interval {kind}" {place} y1="{self.y(low):.1f}" y2="{self.y(high):.1f}"/>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, kind: str, tip: str) -> None:
        """A filled box in data units, a hair narrower than its bin."""
        left, width = self.x(x0) + 0.5, max(0.5, self.x(x1) - self.x(x0) - 1)
        top, height = self.y(y1), max(0.0, self.y(y0) - self.y(y1))
        place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect class="bar {kind}" {place}><title>{escape(tip)}</title></rect>')

    def end_labels(self, labels: Sequence[tuple[float, float, str, str]], space: float = 15.0) -> None:
        """Labels (x, y, text, kind) right of the ends of lines, moved apart where they would overlap."""
        before = -math.inf
        for y, x, text, kind in sorted((self.y(y), self.x(x), text, kind) for x, y, text, kind in labels):
            before = max(y, before + space)
            self.text(x + 9, before + 4, text, f"label {kind}")

    def svg(self) -> str:
        """The drawing as an SVG element."""
        size = f'viewBox="0 0 {self.width} {self.height}" style="max-width:{self.width * 1.25:.0f}px"'
        return f'<svg class="chart" role="img" aria-label="{escape(self.label)}" {size}>{"".join(self._parts)}</svg>'


def stacked_bar(label: str, parts: Sequence[tuple[str, float, str]], width: int = 860) -> str:
    """One horizontal bar of ``parts`` (name, amount, class), each with its share as a tip; names go to a legend."""
    total = sum(amount for _, amount, _ in parts) or 1
    x, boxes = 0.0, []
    for name, amount, kind in parts:
        w = amount / total * width
        tip = f"{name}: {number(amount)} ({amount / total:.1%})"
        boxes.append(f'<rect class="bar {kind}" x="{x:.1f}" y="0" width="{max(0.0, w - 1):.1f}" height="26">')
        boxes.append(f"<title>{escape(tip)}</title></rect>")
        x += w
    head = f'<svg class="stack" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} 26"'
    return f'{head} preserveAspectRatio="none">{"".join(boxes)}</svg>'


def _opened(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` of the points, evenly spread, the first and last among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]
