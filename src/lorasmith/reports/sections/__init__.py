"""The sections of a run's page. Each is a function from a run's data to HTML.

To add one, write a function here (or in another package) and name it in
``registries.REPORT_SECTIONS``; sections appear in the order of the registry.
"""

from collections.abc import Callable

from lorasmith.runs.run_folder import RunFolder

ReportSection = Callable[[RunFolder], str]
"""Returns HTML that loads nothing from elsewhere, with all text escaped (`render_fragment` does
that); an empty string leaves the section out. The run may be unfinished."""
