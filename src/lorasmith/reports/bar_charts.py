"""Bar charts as SVG text that stands in a page by itself: no script, no file, no network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT = 640, 130, 64
_BAR, _GAP, _GROUP = 13, 3, 12


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together, below each other."""

    label: str
    """What they are of."""
    values: Sequence[float]
    """One per series, in the order of the chart's."""


@dataclass(frozen=True)
class BarChart:
    """Groups of bars on one scale."""

    title: str
    """What is shown."""
    series: Sequence[str]
    """Names of the bars of each group, at most four."""
    groups: Sequence[BarGroup]
    """At least one."""
    as_percent: bool = True
    """Write values as percent."""


BAR_STYLES = ("main", "second", "third", "fourth")
"""Classes of the series, which the style sheet has colours for."""


def render_bar_chart(chart: BarChart) -> str:
    """Return the chart as an ``<svg>`` element; every text in it is escaped.

    Bars start at zero; values below it are drawn to the left of it.
    """
    rows = len(chart.series)
    each = rows * (_BAR + _GAP) + _GROUP
    height = len(chart.groups) * each + _GAP
    values = [value for group in chart.groups for value in group.values]
    low, high = min(0.0, *values), max(0.0, *values)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    ]
    for number, group in enumerate(chart.groups):
        parts += _group(chart, group, number * each + _GROUP // 2, (low, (high - low) or 1.0))
    return "\n".join([*parts, "</svg>"])


def _group(chart: BarChart, group: BarGroup, top: int, scale: tuple[float, float]) -> Iterator[str]:
    low, span = scale
    room = _WIDTH - _LEFT - _RIGHT
    zero = _LEFT - low / span * room
    middle = top + len(group.values) * (_BAR + _GAP) / 2 + 2
    yield (
        f'<text class="label" x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">'
        f"{escape(group.label)}</text>"
    )
    for number, value in enumerate(group.values):
        y = top + number * (_BAR + _GAP)
        width = abs(value) / span * room
        left = zero - width if value < 0 else zero
        text = f"{value:.1%}" if chart.as_percent else f"{value:.3g}"
        words = f"{group.label}, {chart.series[number]}: {text}"
        yield (
            f'<rect class="bar {BAR_STYLES[number % len(BAR_STYLES)]}" x="{left:.1f}" y="{y}" '
            f'width="{max(width, 0.5):.1f}" height="{_BAR}" rx="2">'
            f"<title>{escape(words)}</title></rect>"
        )
        end = max(zero, left + width) + 6
        yield f'<text class="tick" x="{end:.1f}" y="{y + _BAR - 2}">{text}</text>'
    yield f'<path class="axis" d="M{zero:.1f} {top - 3}v{len(group.values) * (_BAR + _GAP) + 3}"/>'
