"""``sweep.html`` and ``sweep.json``: all LoRAs of a sweep side by side."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorasmith.config.load import load_saved_config, read_toml
from lorasmith.config.sweep import SweepConfig, format_number
from lorasmith.config.train_config import OutputConfig
from lorasmith.core.errors import LorasmithError, LorasmithWarning, OutputError
from lorasmith.core.files import write_text
from lorasmith.core.version import VERSION
from lorasmith.reports.advice import relative_to_base
from lorasmith.reports.curves import Curve, downsample, extract_curve, smooth
from lorasmith.reports.html import page_template
from lorasmith.reports.line_charts import (
    LINE_STYLES,
    Line,
    LineChart,
    legend_lines,
    render_line_chart,
)
from lorasmith.reports.run_page import format_duration, write_run_page
from lorasmith.reports.sweep_results import SweepResult, make_notes, read_sweep_results
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import RunFolder, image_data_uri, read_prompt, read_run_folder
from lorasmith.runs.sweep_paths import SweepPaths

_TEMPLATE = "sweep.html.j2"


@dataclass(frozen=True)
class SweepRow:
    """A LoRA in a table of results, all in words."""

    file: str
    """Name of the LoRA; where there is none, what would be in it and what became of it."""
    gain: str
    """Empty where it was not measured."""
    step: str
    """Where that was."""
    loss: str
    time: str
    report: str
    """Its own page, relative to the sweep's; empty where there is none."""


@dataclass(frozen=True)
class _Pictures:
    """A row of pictures."""

    label: str
    pictures: tuple[str, ...]
    """Data URIs."""


def write_sweep(run: SweepConfig, paths: SweepPaths) -> None:
    """Write both files; the LoRAs are there by now, so that failing to is no reason to fail."""
    try:
        write_sweep_page(run, paths)
    except LorasmithError as error:
        warnings.warn(f"no overview: {error}", LorasmithWarning, stacklevel=2)


def write_all_sweep_pages(paths: RunPaths) -> list[Path]:
    """Write the reports of all LoRAs of a sweep that were begun, and the page about all of them.

    Returns:
        the pages; none for a run that is no sweep.

    Raises:
        DataError: a file is damaged.
        ConfigError: the settings are damaged or of another version.
        OutputError: a page cannot be written.
    """
    if not paths.settings.is_file() or "vary" not in read_toml(paths.settings):
        return []
    run = load_saved_config(SweepConfig, paths.settings)
    moved = run.model_copy(update={"output": OutputConfig(name=str(paths.folder))})
    every = SweepPaths.from_config(moved)
    pages = [write_run_page(one) for one in every.loras if one.settings.is_file()]
    return [*pages, write_sweep_page(moved, every)]


def write_sweep_page(run: SweepConfig, paths: SweepPaths) -> Path:
    """Write ``sweep.json`` and ``sweep.html`` into the sweep's folder and return the latter.

    Raises:
        DataError: a file of a LoRA is damaged.
        ConfigError: the settings of one are damaged or of another version.
        OutputError: they cannot be written.
    """
    results = read_sweep_results(run, paths)
    figures = json.dumps(sweep_to_dict(run, results), indent=2, ensure_ascii=False)
    for target, text in (
        (paths.json_file, f"{figures}\n"),
        (paths.html_page, render_sweep_page(run, results)),
    ):
        try:
            write_text(target, text)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return paths.html_page


def sweep_to_dict(run: SweepConfig, results: Sequence[SweepResult]) -> dict[str, Any]:
    """Return what ``sweep.json`` says."""
    ranked = any(one.gain is not None for one in results)
    return {
        "tag": run.data.tag,
        "vary": run.model_dump(mode="json")["vary"],
        "ranked_by": "gain" if ranked else None,
        "notes": [f"{note.title}: {note.text}" for note in make_notes(run, results)],
        "variants": [_plain(one) for one in results],
    }


def _plain(result: SweepResult) -> dict[str, Any]:
    """Return a result as JSON; paths are relative to the sweep's folder."""
    return {
        "name": result.name,
        "settings": dict(result.settings),
        "file": result.file and result.file.name,
        "folder": result.folder.name,
        "gain": result.gain,
        "best_step": result.best_step,
        "held_out": result.validation_loss,
        "loss": result.training_loss,
        "steps": result.steps,
        "seconds": result.seconds,
        "state": result.state,
    }


def render_sweep_page(run: SweepConfig, results: Sequence[SweepResult]) -> str:
    """Return the page as HTML."""
    folders = [(one, read_run_folder(one.folder)) for one in results if one.steps]
    prompts, pictures = _pictures(folders)
    every = [(chart, render_line_chart(chart), legend_lines(chart)) for chart in _charts(folders)]
    return page_template(_TEMPLATE).render(
        name=RunPaths.from_name(run.output.name).name,
        tag=run.data.tag,
        vary=[(name, ", ".join(map(_shown, values))) for name, values in run.vary.items()],
        ranked=any(one.gain is not None for one in results),
        notes=make_notes(run, results),
        rows=result_rows(results),
        charts=every,
        coloured=len(LINE_STYLES) if len(folders) > len(LINE_STYLES) else 0,
        prompts=prompts,
        pictures=pictures,
        version=VERSION,
    )


def result_rows(results: Sequence[SweepResult]) -> list[SweepRow]:
    """Return a table of results, for the page and for the terminal."""
    return [
        SweepRow(
            f"{one.name}: {one.state.partition(':')[0]}" if one.file is None else one.file.name,
            "" if one.gain is None else f"{one.gain:.2%}",
            "" if one.best_step is None else str(one.best_step),
            "" if one.training_loss is None else f"{one.training_loss:.4g}",
            "" if one.seconds is None else format_duration(one.seconds),
            _link(one),
        )
        for one in results
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return format_number(value) if isinstance(value, float) else str(value)


def _link(result: SweepResult) -> str:
    there = (result.folder / "report.html").is_file()
    return f"{quote(result.folder.name)}/report.html" if there else ""


# --- curves and pictures ----------------------------------------------------------------------

_Folders = Sequence[tuple[SweepResult, RunFolder]]


def _charts(folders: _Folders) -> list[LineChart]:
    """Return a chart of each kind of loss, with a line for each LoRA."""
    shares = {
        "held_out": "Held-out loss, as a share of the base model's",
        "fixed_loss": "Loss of training pictures on fixed noise, as a share of the base model's",
    }
    charts = [
        _chart(title, [(one.name, downsample(relative_to_base(folder.log, key)))
                       for one, folder in folders])
        for key, title in shares.items()
    ]  # fmt: skip
    losses = [
        (one.name, smooth(downsample(extract_curve(folder.log, "loss")))) for one, folder in folders
    ]
    charts.append(_chart("Training loss, smoothed", losses))
    return [chart for chart in charts if chart.lines]


def _chart(title: str, curves: Sequence[tuple[str, Curve]]) -> LineChart:
    """Return a chart in which the first have a colour each, and all others are faint."""
    lines = [
        Line(name, curve, LINE_STYLES[number] if number < len(LINE_STYLES) else "faint")
        for number, (name, curve) in enumerate(curves)
        if len(curve)
    ]
    return LineChart(title, lines[::-1])  # the first is drawn on top


def _pictures(folders: _Folders) -> tuple[list[str], list[_Pictures]]:
    """Return the prompts, and the last pictures of the base model and of each LoRA."""
    drawn = [(one, folder) for one, folder in folders if folder.previews]
    if not drawn:
        return [], []
    prompts = [read_prompt(picture) for picture in drawn[0][1].previews[-1].images]
    rows = []
    base = drawn[0][1].previews[0]
    if base.step == 0:
        rows.append(_Pictures("base model", tuple(map(image_data_uri, base.images))))
    for one, folder in drawn:
        last = folder.previews[-1]
        if last.step:
            rows.append(_Pictures(one.name, tuple(map(image_data_uri, last.images))))
    return prompts, rows
