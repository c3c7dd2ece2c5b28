"""``sweep.html`` and ``sweep.json``: all LoRAs of a sweep side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorasmith.config.sweep import SweepConfig, format_number
from lorasmith.reports.advice import relative_to_base
from lorasmith.reports.charts.line import LINE_STYLES, Line, LineChart, line_figure
from lorasmith.reports.curves import Curve, downsample, extract_curve, smooth
from lorasmith.reports.embedded_images import EmbeddedRow, embed_preview, preview_prompts
from lorasmith.reports.html import failure_as_warning, render_page, write_output
from lorasmith.reports.number_format import format_duration
from lorasmith.reports.sweep_results import SweepResult, make_notes, read_sweep_results
from lorasmith.runs.run_folder import RunFolder, read_run_folder
from lorasmith.runs.sweep_paths import SweepPaths

_TEMPLATE = "sweep.html.j2"


@dataclass(frozen=True)
class SweepRow:
    """A LoRA in a table of results, formatted."""

    file: str
    """Name of the LoRA; without a file, its name and state."""
    gain: str
    """Empty if it was not measured, like the others."""
    step: str
    """The step of the lowest validation loss."""
    loss: str
    """The training loss."""
    time: str
    report: str
    """Its own page, relative to the sweep's; empty if there is none."""


def write_sweep_page_after_training(config: SweepConfig, paths: SweepPaths) -> None:
    """Write both files; if that fails, warn."""
    with failure_as_warning("sweep page", paths.main.folder):
        write_sweep_page(config, paths)


def write_sweep_page(config: SweepConfig, paths: SweepPaths) -> Path:
    """Write ``sweep.json`` and ``sweep.html`` into the sweep's folder and return the latter.

    Raises:
        OutputError: they cannot be written.
    """
    results = read_sweep_results(config, paths)
    data = json.dumps(sweep_to_dict(config, results), indent=2, ensure_ascii=False)
    write_output(paths.json_file, f"{data}\n")
    return write_output(paths.html_page, render_sweep_page(config, results, paths.main.name))


def sweep_to_dict(config: SweepConfig, results: Sequence[SweepResult]) -> dict[str, Any]:
    """Return the content of ``sweep.json``; paths are relative to the sweep's folder."""
    return {
        "tag": config.data.tag,
        "vary": config.model_dump(mode="json")["vary"],
        "ranked_by": "gain" if _is_ranked(results) else None,
        "notes": [f"{note.title}: {note.evidence}" for note in make_notes(config, results)],
        "variants": [_result_to_dict(result) for result in results],
    }


def _result_to_dict(result: SweepResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "settings": dict(result.settings),
        "file": result.file and result.file.name,
        "folder": result.folder.name,
        "gain": result.gain,
        "best_step": result.best_step,
        "validation_loss": result.validation_loss,
        "loss": result.training_loss,
        "steps": result.steps,
        "seconds": result.seconds,
        "state": result.state,
    }


def _is_ranked(results: Sequence[SweepResult]) -> bool:
    return any(result.gain is not None for result in results)


def render_sweep_page(config: SweepConfig, results: Sequence[SweepResult], name: str) -> str:
    """Return the page of a sweep as HTML."""
    runs = [(result.name, read_run_folder(result.folder)) for result in results if result.steps]
    return render_page(
        _TEMPLATE,
        name=name,
        tag=config.data.tag,
        vary=[(key, ", ".join(map(_format_value, values))) for key, values in config.vary.items()],
        is_ranked=_is_ranked(results),
        notes=make_notes(config, results),
        rows=result_rows(results),
        charts=[line_figure(chart) for chart in _charts(runs)],
        colored_lines=len(LINE_STYLES) if len(runs) > len(LINE_STYLES) else 0,
        prompts=_prompts(runs),
        image_rows=_image_rows(runs),
    )


def result_rows(results: Sequence[SweepResult]) -> list[SweepRow]:
    """Return the table of results, for the page and for the terminal."""
    return [
        SweepRow(
            file=_file_or_state(result),
            gain="" if result.gain is None else f"{result.gain:.2%}",
            step="" if result.best_step is None else str(result.best_step),
            loss="" if result.training_loss is None else f"{result.training_loss:.4g}",
            time="" if result.seconds is None else format_duration(result.seconds),
            report=_report_link(result),
        )
        for result in results
    ]


def _file_or_state(result: SweepResult) -> str:
    if result.file is not None:
        return result.file.name
    return f"{result.name}: {result.state.partition(':')[0]}"


def _report_link(result: SweepResult) -> str:
    has_report = (result.folder / "report.html").is_file()
    return f"{quote(result.folder.name)}/report.html" if has_report else ""


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    return format_number(value) if isinstance(value, float) else str(value)


# --- curves and images ------------------------------------------------------------------------

_NamedRuns = Sequence[tuple[str, RunFolder]]


def _charts(runs: _NamedRuns) -> list[LineChart]:
    """Return a chart of each kind of loss, with a line for each LoRA."""
    titles = {
        "validation_loss": "Validation loss, relative to the base model's",
        "fixed_loss": "Loss of training images on fixed noise, relative to the base model's",
    }
    charts = [
        _chart(title, [(name, downsample(relative_to_base(run.log, key))) for name, run in runs])
        for key, title in titles.items()
    ]
    losses = [(name, smooth(downsample(extract_curve(run.log, "loss")))) for name, run in runs]
    charts.append(_chart("Training loss, smoothed", losses))
    return [chart for chart in charts if chart.lines]


def _chart(title: str, curves: Sequence[tuple[str, Curve]]) -> LineChart:
    """Return a chart in which the first lines have a color each, and all others are faint."""
    lines = [
        Line(name, curve, LINE_STYLES[i] if i < len(LINE_STYLES) else "faint")
        for i, (name, curve) in enumerate(curves)
        if len(curve)
    ]
    return LineChart(title, lines, is_first_on_top=True)


def _prompts(runs: _NamedRuns) -> list[str]:
    return next((preview_prompts(run.previews) for _, run in runs if run.previews), [])


def _image_rows(runs: _NamedRuns) -> list[EmbeddedRow]:
    """Return the last preview images of the base model and of each LoRA."""
    previews = [(name, run.previews) for name, run in runs if run.previews]
    if not previews:
        return []
    base = previews[0][1][0]
    rows = [embed_preview("base model", base)] if base.step == 0 else []
    return [*rows, *(embed_preview(name, steps[-1]) for name, steps in previews if steps[-1].step)]
