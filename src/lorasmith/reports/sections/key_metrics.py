"""Key metrics: losses, time, speed and sizes as tiles."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from lorasmith.reports.advice import best_step, relative_validation_loss
from lorasmith.reports.curves import downsample, extract_curve, smooth
from lorasmith.reports.html import render_fragment
from lorasmith.reports.number_format import format_count, format_duration
from lorasmith.runs.run_folder import RunFolder
from lorasmith.runs.summary import RunSummary

_TEMPLATE = """
{% from "macros.html.j2" import tile %}
<section class="tiles" aria-label="Key metrics">
{% for metric in metrics %}
{{ tile(metric.name, metric.value, metric.note) }}
{% endfor %}
</section>
"""


@dataclass(frozen=True)
class Metric:
    """A number with its name."""

    name: str
    value: str
    note: str = ""


def key_metrics_section(run: RunFolder) -> str:
    """Return the tiles; nothing before the first measurement."""
    metrics = [*_losses(run), *_time(run), *_sizes(run.summary)]
    return render_fragment(_TEMPLATE, metrics=metrics) if metrics else ""


def _losses(run: RunFolder) -> Iterator[Metric]:
    validation = relative_validation_loss(run.log)
    if len(validation):
        gain = 1.0 - float(validation.values.min())
        note = f"below the base model's, step {best_step(validation)}"
        yield Metric("validation loss", f"{gain:.1%}", note)
    training = downsample(extract_curve(run.log, "loss"))
    if len(training) > 1:
        values = smooth(training).values
        yield Metric("training loss", f"{values[-1]:.3g}", f"{values[0]:.3g} at the start")


def _time(run: RunFolder) -> Iterator[Metric]:
    summary = run.summary
    if summary is not None:
        yield Metric("time", format_duration(summary.seconds), f"{summary.steps} steps")
    speeds = extract_curve(run.log, "images_per_s").values.tolist()
    if not speeds:
        return
    notes = [f"on {summary.device}"] if summary else []
    idle = extract_curve(run.log, "gpu_idle").values.tolist()
    if idle:
        notes.append(f"idle {statistics.median(idle):.1%} of the time")
    yield Metric("speed", f"{statistics.median(speeds):.3g} images/s", ", ".join(notes))


def _sizes(summary: RunSummary | None) -> Iterator[Metric]:
    if summary is None:
        return
    validation = summary.validation_images
    note = f"for training, {validation} more for validation" if validation else "all for training"
    yield Metric("images", str(summary.images), note)
    note = f"trainable, in {summary.layers} layers" if summary.layers else "trainable"
    yield Metric("parameters", format_count(summary.parameters), note)
