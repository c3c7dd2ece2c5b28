"""Advice: what the curves say about the run."""

from lorasmith.reports.advice import advise
from lorasmith.reports.html import render_fragment
from lorasmith.runs.run_folder import RunFolder

_TEMPLATE = """
{% from "macros.html.j2" import findings %}
{{ findings("Advice", advice) }}
"""


def advice_section(run: RunFolder) -> str:
    """Return the findings of `advise`."""
    return render_fragment(_TEMPLATE, advice=advise(run.log, run.config))
