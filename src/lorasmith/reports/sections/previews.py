"""Preview images: before and after training, and all along the way."""

from collections.abc import Sequence

from lorasmith.reports.advice import best_step, relative_validation_loss
from lorasmith.reports.embedded_images import EmbeddedRow, embed_preview, preview_prompts
from lorasmith.reports.html import render_fragment
from lorasmith.runs.run_folder import Preview, RunFolder

_MAX_ROWS = 24
"""Rows of the timeline; of more previews, evenly spaced ones are shown, and the page says so."""
_TEMPLATE = """
{% from "macros.html.j2" import image_table %}
<section><h2>{{ title }}</h2>
{% if note %}
<p class="sub">{{ note }}</p>
{% endif %}
{{ image_table(prompts, rows, size) }}
</section>
"""


def before_after_section(run: RunFolder) -> str:
    """Return the images of the base model, of the best step and of the last step."""
    rows = _before_and_after(run.previews, best_step(relative_validation_loss(run.log)))
    if not rows:
        return ""
    prompts = preview_prompts(run.previews)
    return render_fragment(
        _TEMPLATE, title="Before and after", note="", prompts=prompts, rows=rows, size="large"
    )


def _before_and_after(previews: Sequence[Preview], best: int | None) -> list[EmbeddedRow]:
    """Return nothing without the base model's images or others to compare with.

    The best step has no row of its own if it is the first or the last one.
    """
    if len(previews) < 2 or previews[0].step != 0:
        return []
    last = previews[-1]
    middle = [preview for preview in previews[1:-1] if preview.step == best]
    return [
        embed_preview("before", previews[0]),
        *(embed_preview(f"best, step {preview.step}", preview) for preview in middle),
        embed_preview(f"after {last.step} steps", last),
    ]


def timeline_section(run: RunFolder) -> str:
    """Return the preview images of every step that has some."""
    shown, count = _evenly_spaced(run.previews, _MAX_ROWS), len(run.previews)
    if not shown:
        return ""
    note = ""
    if len(shown) < count:
        note = f"{len(shown)} of {count} previews are shown, evenly spaced; all are in previews/."
    return render_fragment(
        _TEMPLATE,
        title="Previews",
        note=note,
        prompts=preview_prompts(run.previews),
        rows=[embed_preview(f"step {preview.step}", preview) for preview in shown],
        size="timeline",
    )


def _evenly_spaced(previews: Sequence[Preview], count: int) -> list[Preview]:
    """Return at most ``count`` previews, with the first and the last among them."""
    if len(previews) <= count:
        return list(previews)
    last = len(previews) - 1
    return [previews[round(i * last / (count - 1))] for i in range(count)]
