"""``evaluation.json`` and ``evaluation.html``: the results of an evaluation."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorasmith.core.version import VERSION
from lorasmith.evaluation.concept import PROMPT_KINDS
from lorasmith.evaluation.metrics.distances import FID_MIN_IMAGES, MIN_IMAGES, Estimate
from lorasmith.evaluation.results import (
    ConceptResult,
    Evaluation,
    EvaluationContext,
    EvaluationResults,
    ImageTable,
    JointResult,
    Leak,
)
from lorasmith.inference.outputs.data_uri import image_to_data_uri
from lorasmith.reports.charts.bar import BarChart, BarGroup, bar_figure
from lorasmith.reports.embedded_images import EmbeddedRow
from lorasmith.reports.html import failure_as_warning, render_page, write_output
from lorasmith.reports.number_format import format_leak

JSON, HTML = "evaluation.json", "evaluation.html"
_TEMPLATE = "evaluation.html.j2"


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write the results, and the page about them; a page that fails is a warning.

    Raises:
        OutputError: the results cannot be written.
    """
    data = json.dumps(evaluation_to_dict(evaluation), indent=2, ensure_ascii=False)
    write_output(folder / JSON, f"{data}\n")
    with failure_as_warning("evaluation page", folder):
        (folder / HTML).unlink(missing_ok=True)  # an earlier one shows other results
        write_output(folder / HTML, render_evaluation_page(evaluation))


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of ``evaluation.json``: all metrics, no images, no local paths."""
    context = asdict(evaluation.context)
    context["judge"] = context.pop("feature_extractor")
    choices = [
        {
            "tag": choice.tag,
            "best": choice.best.name,
            "within_max_leak": choice.is_within_limit,
            "files": [
                {**asdict(candidate), "file": candidate.file.name}
                for candidate in choice.candidates
            ],
        }
        for choice in evaluation.choices
    ]
    results = asdict(evaluation.results)
    for joint in (results["gated"], results["plain"]):
        if joint is not None:
            joint["kept"] = joint.pop("forgetting")
    return {"lorasmith": VERSION, **context, "checkpoints": choices, **results}


def render_evaluation_page(evaluation: Evaluation) -> str:
    """Return the page as HTML."""
    results, context = evaluation.results, evaluation.context
    joint_results = [("with trigger gating", results.gated), ("without gating", results.plain)]
    return render_page(
        _TEMPLATE,
        name=context.name,
        date=context.date,
        max_leak=context.max_leak,
        concepts=[
            {"result": result, "tiles": list(_tiles(result)), "leak_rows": list(_leak_rows(result))}
            for result in results.features
        ],
        charts=[bar_figure(chart) for chart in _charts(results)],
        joint_results=[(mode, joint) for mode, joint in joint_results if joint is not None],
        pairs=results.pairs,
        choices=evaluation.choices,
        image_tables=[
            (table.title, table.columns, list(_embed(table))) for table in evaluation.image_tables
        ],
        facts=_facts(context),
        format_value=_format_value,
        fid_min_images=f"{FID_MIN_IMAGES:,}",
        min_images=MIN_IMAGES,
    )


def _embed(table: ImageTable) -> Iterator[EmbeddedRow]:
    for row in table.rows:
        yield EmbeddedRow(row.label, tuple(image_to_data_uri(image) for image in row.images))


def _tiles(result: ConceptResult) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of a concept's key metrics."""
    fidelity = result.fidelity
    note = f"base {fidelity.base:.3f}, real {fidelity.ceiling:.3f}"
    yield "fidelity", f"{fidelity.lora:.3f}", note
    if fidelity.gain is not None:
        yield "gain", f"{fidelity.gain:.0%}", "of the way from base to real"
    if result.gated is not None:
        is_exact = result.gated.exact
        note = "bit for bit the base model" if is_exact else "of the change with the trigger word"
        yield "leak, gated", format_leak(result.gated.latent.ratio), note
    note = "final latents, of the change with the trigger word"
    yield "leak, no gate", format_leak(result.plain.latent.ratio), note
    if result.text is not None:
        note = f"base {result.text.base:.1f}, real {result.text.real:.1f}"
        yield "CLIP score", f"{result.text.lora:.1f}", note
    kid = result.distribution.kid
    if kid is not None:
        yield "KID", f"{kid.value:.3g}", f"95%: {kid.low:.3g} to {kid.high:.3g}"


def _leak_rows(result: ConceptResult) -> Iterator[tuple[str, list[str]]]:
    """Yield label and cells of the leak table: present, kinds of absent, ratio, floor."""
    modes: list[tuple[str, Leak | None]] = [("gated", result.gated), ("no gate", result.plain)]
    for mode, leak in modes:
        if leak is None:
            continue
        spaces = {
            "final latents": leak.latent,
            "image embeddings": leak.image,
            "predictions": leak.prediction,
        }
        for name, space in spaces.items():
            if space is not None:
                values = [space.present, *(space.absent[kind] for kind in PROMPT_KINDS)]
                cells = [f"{value:.3g}" for value in values]
                yield f"{name}, {mode}", [*cells, format_leak(space.ratio), f"{space.floor:.2g}"]


def _charts(results: EvaluationResults) -> Iterator[BarChart]:
    fidelity = [
        BarGroup(result.tag, [result.fidelity.base, result.fidelity.lora, result.fidelity.ceiling])
        for result in results.features
    ]
    yield BarChart("Fidelity", ["base model", "LoRA", "real to real"], fidelity, as_percent=False)
    leaks = [
        BarGroup(result.tag, [result.gated.latent.ratio or 0.0, result.plain.latent.ratio or 0.0])
        for result in results.features
        if result.gated is not None
    ]
    if leaks:
        yield BarChart("Leak ratio, final latents", ["gated", "no gate"], leaks)
    for mode, joint in (("gated", results.gated), ("no gate", results.plain)):
        if joint is not None:
            yield _bleeding_chart(mode, joint)


def _bleeding_chart(mode: str, joint: JointResult) -> BarChart:
    tags, matrix = joint.bleeding.tags, joint.bleeding.matrix
    groups = [BarGroup(f"with {tag}", row) for tag, row in zip(tags, matrix, strict=True)]
    return BarChart(f"Gain in similarity to each concept, {mode}", tags, groups, as_percent=False)


def _facts(context: EvaluationContext) -> list[tuple[str, str]]:
    return [
        ("model", context.model),
        ("feature extractor", context.feature_extractor),
        ("seeds", f"{len(context.seeds)}, from {context.seeds[0]}"),
        *((name, str(value)) for name, value in context.sampling.items()),
        ("device", context.device),
        ("lorasmith", VERSION),
    ]


def _format_value(value: float | Estimate | None) -> str:
    """Return an estimate with its interval, and anything else as `format_leak` does."""
    if isinstance(value, Estimate):
        return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"
    return format_leak(value)
