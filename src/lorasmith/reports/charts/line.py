"""Line charts as inline SVG: no script, no file, no network.

Colors come from classes of the page's style sheet (``main``, ``second``, ``faint``, ...), so that a
chart follows the page into dark mode.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from lorasmith.reports.curves import Curve
from lorasmith.reports.html import Figure

LineStyle = Literal[
    "main", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "dashed", "faint"
]  # fmt: skip
LINE_STYLES: tuple[LineStyle, ...] = (
    "main", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth",
)  # fmt: skip
"""For lines of equal rank."""

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 26
_MARGIN, _LABEL_MARGIN = 0.06, 0.2
"""Shares of the values' range that stay free above and below, and above next to a label."""
_MAX_POINTS_WITH_DOTS = 12


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    """Its name in the legend."""
    curve: Curve
    """At least one point."""
    style: LineStyle = "main"
    """Class of the line; ``faint`` lines are not in the legend."""


@dataclass(frozen=True)
class LineChart:
    """Lines over the steps of a run."""

    title: str
    lines: Sequence[Line]
    """At least one."""
    marker: tuple[float, str] | None = None
    """A step to point at, and its label."""
    starts_at_zero: bool = False
    """Let the value axis start at zero."""
    is_first_on_top: bool = False
    """Draw the first line over the others, not the last one."""


_SMALLEST_SPAN = 1e-9
"""Relative to the values; less than that cannot be labelled."""


@dataclass(frozen=True)
class _Frame:
    """Maps steps and values to coordinates."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        first, last = self.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.values
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def line_figure(chart: LineChart) -> Figure:
    """Return the chart with its title and legend, for a page."""
    legend = [(line.label, line.style) for line in legend_lines(chart)]
    return Figure(chart.title, render_line_chart(chart), legend)


def render_line_chart(chart: LineChart) -> str:
    """Return the chart as an ``<svg>`` element; all text in it is escaped."""
    frame = _make_frame(chart)
    lines = reversed(chart.lines) if chart.is_first_on_top else chart.lines
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">',
        *_grid(frame),
        *_marker(chart, frame),
        *(_polyline(line, frame) for line in lines),
        *_tooltips(chart, frame),
        "</svg>",
    ]
    return "\n".join(parts)


def legend_lines(chart: LineChart) -> list[Line]:
    """Return the lines that need a name: all that are not faint, if there are several."""
    named = [line for line in chart.lines if line.style != "faint"]
    return named if len(chart.lines) > 1 else []


def nice_ticks(low: float, high: float, max_ticks: int = 6) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / max_ticks))
    step = next(power * f for f in (1, 2, 5, 10, 20) if span / (power * f) <= max_ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _make_frame(chart: LineChart) -> _Frame:
    steps = [float(s) for line in chart.lines for s in line.curve.steps]
    values = [float(v) for line in chart.lines for v in line.curve.values]
    low, high = min(values), max(values)
    low = min(0.0, low) if chart.starts_at_zero else low
    span = high - low
    if span <= _SMALLEST_SPAN * abs(high):  # a constant, and rounding
        span = abs(high) or 1.0
    bottom = low if chart.starts_at_zero and low == 0.0 else low - _MARGIN * span
    top = high + (_LABEL_MARGIN if chart.marker else _MARGIN) * span
    return _Frame((min(0.0, *steps), max(steps)), (bottom, top))


def _grid(frame: _Frame) -> Iterator[str]:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    values = nice_ticks(*frame.values)
    for value, text in zip(values, format_ticks(values), strict=True):
        y = frame.y(value)
        yield f'<path class="grid" d="M{_LEFT} {y}H{right}"/>'
        yield f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>'
    for step in nice_ticks(*frame.steps, max_ticks=8):
        if step == int(step):
            position = f'x="{frame.x(step)}" y="{floor + 18}" text-anchor="middle"'
            yield f'<text class="tick" {position}>{step:g}</text>'
    yield f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>'


def _marker(chart: LineChart, frame: _Frame) -> Iterator[str]:
    if chart.marker is None:
        return
    step, label = chart.marker
    x = frame.x(step)
    anchor, shift = ("end", -6) if x > _WIDTH / 2 else ("start", 6)
    yield f'<path class="mark" d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
    yield (
        f'<text class="label" x="{x + shift}" y="{_TOP + 12}" text-anchor="{anchor}">'
        f"{escape(label)}</text>"
    )


def _polyline(line: Line, frame: _Frame) -> str:
    points = [
        (frame.x(float(step)), frame.y(float(value)))
        for step, value in zip(line.curve.steps, line.curve.values, strict=True)
    ]
    coordinates = " ".join(f"{x},{y}" for x, y in points)
    polyline = f'<polyline class="line {line.style}" points="{coordinates}"/>'
    if len(points) > _MAX_POINTS_WITH_DOTS or line.style in ("faint", "dashed"):
        return polyline
    dots = "".join(f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in points)
    return polyline + dots


def _tooltips(chart: LineChart, frame: _Frame) -> Iterator[str]:
    """Yield invisible strips whose titles a browser shows as the values at a step."""
    values_at: dict[float, list[str]] = {}
    for line in chart.lines:
        for step, value in zip(line.curve.steps, line.curve.values, strict=True):
            values_at.setdefault(float(step), []).append(f"{line.label}: {value:.4g}")
    steps = sorted(values_at)
    centers = [frame.x(step) for step in steps]
    edges = [_LEFT, *((a + b) / 2 for a, b in pairwise(centers)), _WIDTH - _RIGHT]
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        title = escape("\n".join([f"step {step:g}", *values_at[step]]))
        yield (
            f'<rect class="strip" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 0):.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{title}</title></rect>'
        )


def format_ticks(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis, all with the same decimals, small values as 2e-4."""
    largest = max(abs(value) for value in values)
    if 0 < largest < 1e-3:
        return [_scientific(value) for value in values]
    gap = values[1] - values[0] if len(values) > 1 else largest or 1.0
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{value:,.{decimals}f}" for value in values]


def _scientific(value: float) -> str:
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}" if value else "0"
