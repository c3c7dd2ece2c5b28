"""``report.html``: a run on one page that needs nothing else, written from the run's folder."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.core.errors import OutputError
from lorasmith.core.files import write_text
from lorasmith.core.version import VERSION
from lorasmith.reports.advice import advise, best_step, relative_to_base, relative_validation_loss
from lorasmith.reports.curves import downsample, extract_curve, smooth
from lorasmith.reports.html import page_template
from lorasmith.reports.line_charts import (
    LINE_STYLES,
    Line,
    LineChart,
    legend_lines,
    render_line_chart,
)
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import (
    Preview,
    RunFolder,
    image_data_uri,
    read_prompt,
    read_run_folder,
)

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = "run.html.j2"
_MOST_ROWS = 24
"""Rows of the preview timeline; of more, evenly spread ones are shown, and the page says so."""


@dataclass(frozen=True)
class Shown:
    """A row of pictures in the page."""

    label: str
    """What is left of it."""
    pictures: tuple[str, ...]
    """Data URIs."""


@dataclass(frozen=True)
class Tile:
    """A figure with its name."""

    name: str
    value: str
    note: str = ""


def write_run_page(paths: RunPaths) -> Path:
    """Write ``report.html`` into a run's folder and return it.

    Only the folder's files are read, so a report can be written again at any time, also of a run
    that is not finished.

    Raises:
        DataError: it is not a run's folder, or a file in it is damaged.
        ConfigError: its settings are damaged or of another version.
        OutputError: the report cannot be written.
    """
    target = paths.report
    page = render_run_page(read_run_folder(paths.folder))
    try:
        write_text(target, page)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def render_run_page(run: RunFolder) -> str:
    """Return the page of a run as HTML."""
    rows = _spread(run.previews, _MOST_ROWS)
    return _template().render(
        name=run.folder.resolve().name,
        tag=run.config.data.tag,
        finished=run.summary is not None,
        stopped=run.summary.stop_reason if run.summary else "not finished",
        written=_day(run.log),
        advice=advise(run.log, run.config),
        tiles=list(_tiles(run)),
        before_after=_before_after(run.previews, best_step(relative_validation_loss(run.log))),
        prompts=_prompts(run.previews),
        timeline=[_shown(f"step {preview.step}", preview) for preview in rows],
        left_out=len(run.previews) - len(rows),
        charts=[(chart, render_line_chart(chart), legend_lines(chart)) for chart in _charts(run)],
        facts=_facts(run),
        settings=run.settings_toml,
        version=VERSION,
    )


def _template() -> "Template":
    return page_template(_TEMPLATE)


# --- figures --------------------------------------------------------------------------------------


def _tiles(run: RunFolder) -> list[Tile]:
    tiles, held_out, losses = (
        [],
        relative_validation_loss(run.log),
        downsample(extract_curve(run.log, "loss")),
    )
    if len(held_out):
        gain = 1.0 - float(held_out.values.min())
        note = f"below the base model's, step {best_step(held_out)}"
        tiles.append(Tile("held-out loss", f"{gain:.1%}", note))
    if len(losses) > 1:
        curve = smooth(losses).values
        tiles.append(Tile("training loss", f"{curve[-1]:.3g}", f"{curve[0]:.3g} at the start"))
    speeds = extract_curve(run.log, "images_per_s").values.tolist()
    summary = run.summary
    if summary is not None:
        tiles.append(Tile("time", format_duration(summary.seconds), f"{summary.steps} steps"))
    if speeds:
        note = f"on {summary.device}" if summary else ""
        idle = extract_curve(run.log, "gpu_idle").values.tolist()
        if idle:
            note = f"{note}, idle {statistics.median(idle):.1%} of the time".removeprefix(", ")
        tiles.append(Tile("speed", f"{statistics.median(speeds):.3g}/s", note))
    if summary is not None:
        kept = (
            f"{summary.validation_images} more kept out"
            if summary.validation_images
            else "none kept out"
        )
        tiles.append(Tile("pictures", str(summary.images), kept))
        layers = f"in {summary.layers} layers" if summary.layers else ""
        tiles.append(Tile("trained numbers", _short(summary.parameters), layers))
    return tiles


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """Return the table of what the run says about itself."""
    settings, summary = run.config, run.summary
    facts = [("tag", settings.data.tag), ("rank", str(settings.lora.rank))]
    targets = settings.lora.targets
    facts.append(("layers", targets if isinstance(targets, str) else ", ".join(targets)))
    facts.append(("steps asked for", str(settings.train.steps)))
    if summary is None:
        return [*facts, ("state", "not finished")]
    facts += [
        ("steps done", str(summary.steps)),
        ("ended", summary.stop_reason),
        ("model", f"{summary.model} ({summary.family})" if summary.model else summary.family),
        ("LoRA file", summary.file),
        ("SHA-256 of its weights", summary.sha256),
        ("lowest held-out loss", "" if summary.best_step is None else f"step {summary.best_step}"),
    ]
    return [(name, value) for name, value in facts if value]


def _charts(run: RunFolder) -> list[LineChart]:
    log, charts = run.log, []
    losses = downsample(extract_curve(log, "loss"))
    if len(losses):
        lines = [Line("as measured", losses, "faint"), Line("smoothed", smooth(losses))]
        charts.append(LineChart("Training loss", lines))
    charts += _on_fixed_noise(log, "held_out", "Held-out loss")
    charts += _on_fixed_noise(log, "fixed_loss", "Loss of training pictures on fixed noise")
    rates = sorted({key for line in log for key in line if key == "lr" or key.startswith("lr/")})
    lines = [
        Line(_part(key), downsample(extract_curve(log, key)), LINE_STYLES[k % len(LINE_STYLES)])
        for k, key in enumerate(rates)
        if len(extract_curve(log, key))
    ]
    if lines:
        charts.append(LineChart("Learning rate", lines, starts_at_zero=True))
    norms = downsample(extract_curve(log, "grad_norm"))
    if len(norms):
        charts.append(LineChart("Gradient norm, before clipping", [Line("largest", norms)]))
    return charts


def _on_fixed_noise(log: Sequence[dict[str, float]], key: str, title: str) -> list[LineChart]:
    """Return the chart of a loss beside the base model's, if it was measured."""
    ours, base = extract_curve(log, key), extract_curve(log, f"{key}_base")
    if not (len(ours) and len(base)):
        return []
    best = best_step(relative_to_base(log, key)) if key == "held_out" else None
    mark = None if best is None else (float(best), f"best: step {best}")
    lines = [Line("base model", downsample(base), "dashed"), Line("LoRA", downsample(ours))]
    return [LineChart(title, lines, mark)]


def _part(key: str) -> str:
    return key.removeprefix("lr/") if "/" in key else "learning rate"


# --- pictures -------------------------------------------------------------------------------------


def _before_after(previews: Sequence[Preview], best: int | None) -> list[Shown]:
    """Return the base model's pictures, the best and the last ones.

    Nothing where there are none of the base model or of nothing else; no best ones where that was
    the base model or the end.
    """
    if len(previews) < 2 or previews[0].step != 0:
        return []
    last = previews[-1]
    middle = [one for one in previews[1:-1] if one.step == best]
    return [
        _shown("before", previews[0]),
        *(_shown(f"best, step {one.step}", one) for one in middle),
        _shown(f"after {last.step} steps", last),
    ]


def _prompts(previews: Sequence[Preview]) -> list[str]:
    return [read_prompt(picture) for picture in previews[-1].images] if previews else []


def _shown(label: str, preview: Preview) -> Shown:
    return Shown(label, tuple(image_data_uri(picture) for picture in preview.images))


def _spread(previews: Sequence[Preview], most: int) -> list[Preview]:
    """Return at most so many previews, evenly spread, the first and the last among them."""
    if len(previews) <= most:
        return list(previews)
    last = len(previews) - 1
    return [previews[round(k * last / (most - 1))] for k in range(most)]


# --- words ----------------------------------------------------------------------------------------


def _day(log: Sequence[dict[str, float]]) -> str:
    times = [line["time"] for line in log if "time" in line]
    return f"{datetime.fromtimestamp(times[-1], UTC):%Y-%m-%d %H:%M} UTC" if times else ""


def format_duration(seconds: float) -> str:
    """Return a time in words, such as 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _short(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
