"""Sections of a run's page that another package registers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.reports.run_folders import write_run
from lorasmith.cli import run as run_command
from lorasmith.registries import REPORT_SECTIONS
from lorasmith.reports.html import render_fragment
from lorasmith.runs.run_folder import RunFolder


@pytest.fixture
def toy_section() -> Iterator[None]:
    @REPORT_SECTIONS.register("toy")
    def toy(run: RunFolder) -> str:
        return render_fragment("<section><h2>Toy</h2>{{ text }}</section>", text=f"<{run.log[0]}>")

    yield
    REPORT_SECTIONS.unregister("toy")


def test_registered_section_is_on_the_page(tmp_path: Path, toy_section: None) -> None:
    folder = write_run(tmp_path / "ink")
    assert run_command(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.index("<h2>The run</h2>") < page.index("<h2>Toy</h2>")
    assert "&lt;{" in page


def test_empty_section_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "ink")
    assert run_command(["report", str(folder)]) == 0
    before = (folder / "report.html").read_text()
    REPORT_SECTIONS.register("empty", lambda run: "")
    try:
        assert run_command(["report", str(folder)]) == 0
    finally:
        REPORT_SECTIONS.unregister("empty")
    assert (folder / "report.html").read_text() == before


def test_built_in_sections_are_in_their_order() -> None:
    assert REPORT_SECTIONS.names()[:6] == (
        "advice", "key-metrics", "before-after", "curves", "previews", "settings",
    )  # fmt: skip
