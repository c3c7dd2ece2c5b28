"""``evaluation.json`` and ``evaluation.html``: what was measured, and on one page with pictures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorasmith.core.errors import OutputError
from lorasmith.core.files import write_text
from lorasmith.core.version import VERSION
from lorasmith.evaluation.checkpoint_choice import Candidate
from lorasmith.evaluation.concept import PROMPT_KINDS
from lorasmith.evaluation.metrics.distances import FID_MIN_IMAGES, MIN_IMAGES, Estimate
from lorasmith.evaluation.results import ConceptResult, EvaluationResults, JointResult, Leak
from lorasmith.evaluation.sample_images import ImageTable
from lorasmith.inference.outputs.data_uri import image_to_data_uri
from lorasmith.reports.bar_charts import BAR_STYLES, BarChart, BarGroup, render_bar_chart
from lorasmith.reports.html import page_template

JSON, HTML = "evaluation.json", "evaluation.html"
_TEMPLATE = "evaluation.html.j2"


@dataclass(frozen=True)
class EvaluationContext:
    """How it was measured."""

    name: str
    """What the page is headed."""
    model: str
    feature_extractor: str
    device: str
    seeds: Sequence[int]
    sampling: Mapping[str, Any]
    """Steps, guidance, size and sampler."""
    max_leak: float | None = None
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


@dataclass(frozen=True)
class CheckpointChoice:
    """The files of one tag, the best of which was measured."""

    tag: str
    candidates: Sequence[Candidate]
    best: Path
    is_within_limit: bool
    """Whether it keeps to the leak that was asked for."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that is written."""

    context: EvaluationContext
    results: EvaluationResults
    choices: Sequence[CheckpointChoice]
    """Of tags with several files."""
    image_tables: Sequence[ImageTable]


def write_evaluation(folder: Path, found: Evaluation) -> tuple[Path, Path]:
    """Write both files and return them, JSON first.

    Raises:
        OutputError: one cannot be written.
    """
    texts = {
        JSON: json.dumps(evaluation_to_dict(found), indent=2, ensure_ascii=False),
        HTML: render_evaluation_page(found),
    }
    for name, text in texts.items():
        try:
            write_text(folder / name, f"{text}\n")
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot write {folder / name}: {reason}") from error
    return folder / JSON, folder / HTML


def evaluation_to_dict(found: Evaluation) -> dict[str, Any]:
    """Return what JSON holds: every figure, no picture, no path of this machine."""
    context = asdict(found.context)
    context["judge"] = context.pop("feature_extractor")
    chosen = [
        {
            "tag": one.tag,
            "best": one.best.name,
            "within_max_leak": one.is_within_limit,
            "files": [{**asdict(c), "file": c.file.name} for c in one.candidates],
        }
        for one in found.choices
    ]
    tree = {"lorasmith": VERSION, **context, "checkpoints": chosen, **asdict(found.results)}
    for joint in (tree["gated"], tree["plain"]):
        if joint is not None:
            joint["kept"] = joint.pop("forgetting")
    return tree


def render_evaluation_page(found: Evaluation) -> str:
    """Return the page as HTML."""
    template = page_template(_TEMPLATE)
    scenes = [(one.title, one.columns, list(_embedded(one))) for one in found.image_tables]
    figures = found.results
    return template.render(
        context=found.context,
        features=[(one, list(_tiles(one)), list(_leak_rows(one))) for one in figures.features],
        charts=[(chart, render_bar_chart(chart), list(zip(chart.series, BAR_STYLES, strict=False)))
                for chart in _charts(figures)],
        sets=[(name, one) for name, one in (("under their gates", figures.gated),
              ("without gates", figures.plain)) if one is not None],
        pairs=figures.pairs,
        chosen=found.choices,
        scenes=scenes,
        facts=_facts(found),
        shown=_shown,
        version=VERSION,
        fid_from=f"{FID_MIN_IMAGES:,}",
        smallest=MIN_IMAGES,
    )  # fmt: skip


def _embedded(scene: ImageTable) -> Iterator[tuple[str, list[str]]]:
    for row in scene.rows:
        yield row.label, [image_to_data_uri(picture) for picture in row.images]


def _tiles(one: ConceptResult) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of a tag's headline figures."""
    like = one.fidelity
    yield "fidelity", f"{like.lora:.3f}", f"base {like.base:.3f}, real {like.ceiling:.3f}"
    if like.gain is not None:
        yield "gain", f"{like.gain:.0%}", "of the way from base to real"
    if one.gated is not None:
        note = "bit for bit the base model" if one.gated.exact else "of the change with the tag"
        yield "leak, gated", _shown(one.gated.latent.ratio), note
    yield (
        "leak, no gate",
        _shown(one.plain.latent.ratio),
        "final latents, of the change with the tag",
    )
    if one.text is not None:
        yield (
            "CLIP score",
            f"{one.text.lora:.1f}",
            f"base {one.text.base:.1f}, real {one.text.real:.1f}",
        )
    kid = one.distribution.kid
    if kid is not None:
        yield "KID", f"{kid.value:.3g}", f"95%: {kid.low:.3g} to {kid.high:.3g}"


def _leak_rows(one: ConceptResult) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and cells of the leak table: present, kinds of absent, ratio, floor."""
    modes: list[tuple[str, Leak | None]] = [("gated", one.gated), ("no gate", one.plain)]
    for mode, leak in modes:
        if leak is None:
            continue
        spaces = (("final latents", leak.latent), ("image tower", leak.image),
                  ("predictions", leak.prediction))  # fmt: skip
        for name, space in spaces:
            if space is not None:
                values = [space.present, *(space.absent[kind] for kind in PROMPT_KINDS)]
                cells = [f"{value:.3g}" for value in values]
                yield f"{name}, {mode}", [*cells, _shown(space.ratio), f"{space.floor:.2g}"]


def _charts(figures: EvaluationResults) -> list[BarChart]:
    like = [
        BarGroup(one.tag, [one.fidelity.base, one.fidelity.lora, one.fidelity.ceiling])
        for one in figures.features
    ]
    charts = [
        BarChart("Fidelity", ["base model", "LoRA", "real to real"], like, as_percent=False),
    ]
    leaks = [
        BarGroup(one.tag, [0.0 if one.gated is None else one.gated.latent.ratio or 0.0,
                           one.plain.latent.ratio or 0.0])
        for one in figures.features if one.gated is not None
    ]  # fmt: skip
    if leaks:
        charts.append(BarChart("Leak ratio, final latents", ["gated", "no gate"], leaks))
    for name, found in (("gated", figures.gated), ("no gate", figures.plain)):
        if found is not None:
            charts.append(_bleeding(name, found))
    return charts


def _bleeding(name: str, found: JointResult) -> BarChart:
    tags = found.bleeding.tags
    rows = zip(tags, found.bleeding.matrix, strict=True)
    groups = [BarGroup(f"with {tag}", row) for tag, row in rows]
    return BarChart(f"Gain in likeness to each feature, {name}", tags, groups, as_percent=False)


def _facts(found: Evaluation) -> list[tuple[str, str]]:
    context = found.context
    return [
        ("model", context.model),
        ("judge", context.feature_extractor),
        ("seeds", f"{len(context.seeds)}, from {context.seeds[0]}"),
        *((name, str(value)) for name, value in context.sampling.items()),
        ("device", context.device),
        ("lorasmith", VERSION),
    ]


def _shown(value: float | Estimate | None) -> str:
    """Return a share as percent, exact zero as 0, an estimate with its interval."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"
    return "0" if value == 0 else f"{value:.1%}" if abs(value) >= 0.001 else f"{value:.1e}"
