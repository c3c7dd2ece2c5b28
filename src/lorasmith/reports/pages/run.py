"""``report.html``: a run on one self-contained page, written from the run's folder."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lorasmith.registries import REPORT_SECTIONS
from lorasmith.reports.html import render_page, write_output
from lorasmith.reports.sections import ReportSection
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_folder import RunFolder, read_run_folder

_TEMPLATE = "run.html.j2"
_LAST_TIME = 2**36
"""In the year 4147; later ones in a log are damage."""


def write_run_page(paths: RunPaths) -> Path:
    """Write ``report.html`` into a run's folder and return it.

    Only the folder's files are read, so the page can be written again at any time, also for an
    unfinished run.

    Raises:
        DataError: it is not a run's folder, or a file in it is damaged.
        ConfigError: its settings are damaged or of another version.
        OutputError: the page cannot be written.
    """
    return write_output(paths.report, render_run_page(read_run_folder(paths.folder)))


def render_run_page(run: RunFolder) -> str:
    """Return the page of a run as HTML: all registered sections in their order."""
    registered: Iterable[ReportSection] = REPORT_SECTIONS.load_all().values()
    sections = [section(run) for section in registered]
    return render_page(
        _TEMPLATE,
        name=run.folder.resolve().name,
        tag=run.config.data.tag,
        state=run.summary.stop_reason if run.summary else "not finished",
        date=_last_date(run.log),
        sections=[section for section in sections if section],
    )


def _last_date(log: Sequence[dict[str, float]]) -> str:
    times = [line["time"] for line in log if 0 <= line.get("time", -1) < _LAST_TIME]
    return f"{datetime.fromtimestamp(times[-1], UTC):%Y-%m-%d %H:%M} UTC" if times else ""
