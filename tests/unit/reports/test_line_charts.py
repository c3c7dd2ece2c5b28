import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.reports.charts.line import (
    Line,
    LineChart,
    format_ticks,
    legend_lines,
    nice_ticks,
    render_line_chart,
)
from lorasmith.reports.curves import Curve


def curve(steps: list[float], values: list[float]) -> Curve:
    return Curve(np.array(steps, dtype=float), np.array(values, dtype=float))


def parse_svg(chart: LineChart) -> ET.Element:
    return ET.fromstring(render_line_chart(chart))


def points(svg: ET.Element, style: str) -> list[tuple[float, float]]:
    line = next(e for e in svg if e.tag == "polyline" and style in e.get("class", "").split())
    pairs = (pair.split(",") for pair in line.get("points", "").split())
    return [(float(x), float(y)) for x, y in pairs]


def test_lines_keep_their_proportions() -> None:
    chart = LineChart("Loss", [Line("a", curve([0, 50, 100], [3.0, 2.0, 1.0]))])
    (x0, y0), (x1, y1), (x2, y2) = points(parse_svg(chart), "main")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y0 < y1  # larger values are further up
    assert all(58 <= x <= 626 and 12 <= y <= 214 for x, y in [(x0, y0), (x2, y2)])


@pytest.mark.parametrize("steps", [[0.0], [5.0, 5.0], [1.0, 2.0]])
@pytest.mark.parametrize("values", [[0.0], [-3.0, -3.0], [1e-9, 2e9]])
def test_degenerate_curves_are_drawn(steps: list[float], values: list[float]) -> None:
    short = curve(steps[: len(values)], values[: len(steps)])
    for starts_at_zero in (False, True):
        text = render_line_chart(LineChart("x", [Line("a", short)], starts_at_zero=starts_at_zero))
        assert "nan" not in text
        assert "inf" not in text.replace("infinity", "")


def test_texts_are_escaped() -> None:
    chart = LineChart("<b>&", [Line('<i>"', curve([1, 2], [1, 2]))], marker=(1.0, "</svg>"))
    assert parse_svg(chart).get("aria-label") == "<b>&"
    assert "<i>" not in render_line_chart(chart)
    assert render_line_chart(chart).count("</svg>") == 1


def test_tooltips_have_the_values_of_a_step() -> None:
    lines = [Line("ours", curve([0, 100], [2, 1])), Line("base", curve([0], [3]), "dashed")]
    titles = [e.findtext("title") for e in parse_svg(LineChart("x", lines)) if e.tag == "rect"]
    assert titles == ["step 0\nours: 2\nbase: 3", "step 100\nours: 1"]
    assert [line.label for line in legend_lines(LineChart("x", lines))] == ["ours", "base"]
    assert legend_lines(LineChart("x", lines[:1])) == []


def test_marker_is_at_its_step() -> None:
    svg = parse_svg(LineChart("x", [Line("a", curve([0, 10], [1, 2]))], marker=(10.0, "best")))
    x = points(svg, "main")[-1][0]
    mark = next(e for e in svg if e.get("class") == "mark")
    assert re.match(rf"M{x} ", mark.get("d", ""))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    gap = span * 1e-6 + 8 * math.ulp(max(abs(low), abs(low + span)))  # rounding
    assert 1 <= len(ticks) <= 7
    assert all(low - gap <= value <= low + span + gap for value in ticks)


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 250) == [0, 50, 100, 150, 200, 250]
    assert format_ticks(nice_ticks(0.037, 0.101)) == ["0.04", "0.06", "0.08", "0.10"]
    assert format_ticks([0.0, 5e-5, 1e-4]) == ["0", "5e-5", "1e-4"]
    assert format_ticks([0.0, 5000.0]) == ["0", "5,000"]
    assert nice_ticks(2, 2) == [2]
