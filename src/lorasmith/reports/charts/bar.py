"""Bar charts as inline SVG: no script, no file, no network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from lorasmith.reports.html import Figure

_WIDTH, _LEFT, _RIGHT = 640, 130, 64
_BAR, _GAP, _GROUP_GAP = 13, 3, 12

BAR_STYLES = ("main", "second", "third", "fourth")
"""Classes of the series in the style sheet."""


@dataclass(frozen=True)
class BarGroup:
    """Bars that belong together, one below the other."""

    label: str
    values: Sequence[float]
    """One for each series of the chart."""


@dataclass(frozen=True)
class BarChart:
    """Groups of bars on one scale."""

    title: str
    series: Sequence[str]
    """Names of the bars of each group, at most four."""
    groups: Sequence[BarGroup]
    """At least one."""
    as_percent: bool = True


def bar_figure(chart: BarChart) -> Figure:
    """Return the chart with its title and legend, for a page."""
    legend = list(zip(chart.series, BAR_STYLES, strict=False))
    return Figure(chart.title, render_bar_chart(chart), legend)


def render_bar_chart(chart: BarChart) -> str:
    """Return the chart as an ``<svg>`` element; all text in it is escaped.

    Bars start at zero; negative values extend to the left of it.
    """
    group_height = len(chart.series) * (_BAR + _GAP) + _GROUP_GAP
    height = len(chart.groups) * group_height + _GAP
    values = [value for group in chart.groups for value in group.values]
    low, high = min(0.0, *values), max(0.0, *values)
    scale = low, (high - low) or 1.0
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    ]
    for i, group in enumerate(chart.groups):
        parts += _group(chart, group, i * group_height + _GROUP_GAP // 2, scale)
    return "\n".join([*parts, "</svg>"])


def _group(chart: BarChart, group: BarGroup, top: int, scale: tuple[float, float]) -> Iterator[str]:
    low, span = scale
    full_width = _WIDTH - _LEFT - _RIGHT
    zero = _LEFT - low / span * full_width
    middle = top + len(group.values) * (_BAR + _GAP) / 2 + 2
    yield (
        f'<text class="label" x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">'
        f"{escape(group.label)}</text>"
    )
    for i, value in enumerate(group.values):
        y = top + i * (_BAR + _GAP)
        width = abs(value) / span * full_width
        left = zero - width if value < 0 else zero
        text = f"{value:.1%}" if chart.as_percent else f"{value:.3g}"
        title = f"{group.label}, {chart.series[i]}: {text}"
        yield (
            f'<rect class="bar {BAR_STYLES[i % len(BAR_STYLES)]}" x="{left:.1f}" y="{y}" '
            f'width="{max(width, 0.5):.1f}" height="{_BAR}" rx="2">'
            f"<title>{escape(title)}</title></rect>"
        )
        end = max(zero, left + width) + 6
        yield f'<text class="tick" x="{end:.1f}" y="{y + _BAR - 2}">{text}</text>'
    yield f'<path class="axis" d="M{zero:.1f} {top - 3}v{len(group.values) * (_BAR + _GAP) + 3}"/>'
