"""Curves: losses, learning rates and gradient norms over the steps."""

from collections.abc import Mapping, Sequence

from lorasmith.reports.advice import best_step, relative_to_base
from lorasmith.reports.charts.line import LINE_STYLES, Line, LineChart, line_figure
from lorasmith.reports.curves import downsample, extract_curve, smooth
from lorasmith.reports.html import render_fragment
from lorasmith.runs.run_folder import RunFolder

_TEMPLATE = """
{% from "macros.html.j2" import figures %}
<section><h2>Curves</h2>
{{ figures(charts) }}
</section>
"""
Log = Sequence[Mapping[str, float]]


def curves_section(run: RunFolder) -> str:
    """Return a chart of everything that the log has values of."""
    log = run.log
    charts = [
        *_training_loss(log),
        *_fixed_noise_loss(log, "validation_loss", "Validation loss"),
        *_fixed_noise_loss(log, "fixed_loss", "Loss of training images on fixed noise"),
        *_learning_rates(log),
        *_gradient_norm(log),
    ]
    if not charts:
        return ""
    return render_fragment(_TEMPLATE, charts=[line_figure(chart) for chart in charts])


def _training_loss(log: Log) -> list[LineChart]:
    losses = downsample(extract_curve(log, "loss"))
    if not len(losses):
        return []
    lines = [Line("as measured", losses, "faint"), Line("smoothed", smooth(losses))]
    return [LineChart("Training loss", lines)]


def _fixed_noise_loss(log: Log, key: str, title: str) -> list[LineChart]:
    """Return the chart of a loss on fixed noise beside the base model's, if it was measured."""
    lora, base = extract_curve(log, key), extract_curve(log, f"{key}_base")
    if not (len(lora) and len(base)):
        return []
    best = best_step(relative_to_base(log, key)) if key == "validation_loss" else None
    marker = None if best is None else (float(best), f"best: step {best}")
    lines = [Line("base model", downsample(base), "dashed"), Line("LoRA", downsample(lora))]
    return [LineChart(title, lines, marker)]


def _learning_rates(log: Log) -> list[LineChart]:
    keys = sorted({key for line in log for key in line if key == "lr" or key.startswith("lr/")})
    curves = {key: extract_curve(log, key) for key in keys}
    lines = [
        Line(_parameter_group(key), downsample(curve), LINE_STYLES[i % len(LINE_STYLES)])
        for i, (key, curve) in enumerate(curves.items())
        if len(curve)
    ]
    return [LineChart("Learning rate", lines, starts_at_zero=True)] if lines else []


def _parameter_group(key: str) -> str:
    return key.removeprefix("lr/") if "/" in key else "learning rate"


def _gradient_norm(log: Log) -> list[LineChart]:
    norms = downsample(extract_curve(log, "grad_norm"))
    lines = [Line("largest", norms)]
    return [LineChart("Gradient norm, before clipping", lines)] if len(norms) else []
