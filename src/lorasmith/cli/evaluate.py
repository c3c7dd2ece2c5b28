"""``lorasmith evaluate``: does a tag bring its feature, and nothing without it?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from lorasmith.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasmith.evaluation.concept import EvalConcept
    from lorasmith.evaluation.evaluator import Evaluator
    from lorasmith.evaluation.feature_extractor import FeatureExtractor
    from lorasmith.evaluation.image_generator import ImageGenerator
    from lorasmith.evaluation.results import ConceptResult
    from lorasmith.inference.options import SamplingOptions
    from lorasmith.models.load import Model
    from lorasmith.reports.evaluation_page import CheckpointChoice, Evaluation
    from lorasmith.training.eval_targets import EvalTarget

_FILE_WIDTH = 120


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("evaluate")(evaluate)


def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|FILE...", help="Folders of runs, or LoRA files.", show_default=False
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Captioned pictures to compare with: a folder or a packed tar. Those that have a "
            "tag in their caption count for it.",
            show_default="those that the run kept out of its training",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results.", show_default="the run's, or `evaluation`"),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=2, help="Pictures of each kind of prompt, each from its own seed.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    max_leak: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of several files of one tag, measure the one of the lowest held-out loss whose "
            "leak ratio in predictions is at most this.",
            show_default="any",
        ),
    ] = None,
    class_word: Annotated[
        str | None,
        typer.Option(
            "--class", help="What the pictures show without the tag.", show_default="the file's"
        ),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the network that looks at pictures: CLIP as transformers saves it, or "
            "Inception v3.",
            show_default="the embedded image tower",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="Folder, .safetensors file or cached id.",
            show_default="the run's",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 5.0,
    size: Annotated[
        str | None, typer.Option(help="Size, such as 512x512.", show_default="the model's")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Number format.")
    ] = "fp32",
) -> None:
    """Measure tags: fidelity, leaking without the tag, bleeding between tags, forgetting.

    Writes `evaluation.json` and `evaluation.html`, a page with pictures that needs nothing else.
    Every figure's formula is in docs/evaluation.md. Of a run with several saved files, or several
    files of one tag, the best is chosen first, by the loss on the held-out pictures.

    Example: `lorasmith evaluate loras/inkmono --max-leak 0.2`
    """
    from lorasmith.core.device import compute_dtype, pick_device
    from lorasmith.core.files import ensure_writable_folder
    from lorasmith.evaluation.feature_extractor import load_feature_extractor
    from lorasmith.inference.options import SamplingOptions, parse_optional_size
    from lorasmith.models.load import load_model
    from lorasmith.reports.evaluation_page import write_evaluation
    from lorasmith.training.eval_targets import find_targets

    paths = [target.expanduser() for target in targets]
    found = find_targets(paths)
    place = ensure_writable_folder(_place(out, paths))
    features = [one.to_concept(data and data.expanduser(), class_word) for one in found]
    width, height = parse_optional_size(size)
    options = SamplingOptions(
        num_inference_steps=steps, guidance_scale=guidance, width=width, height=height,
        batch_size=batch_size,
    )  # fmt: skip
    looking = load_feature_extractor(judge and judge.expanduser())
    opened = load_model(_model_of(model, found)).to(pick_device(device), compute_dtype(precision))
    with _drawing(opened, options) as studio:
        name = ", ".join(path.resolve().stem for path in paths)
        seen = _evaluated(
            name, studio, looking, range(seed, seed + seeds), features, found, max_leak
        )
    written = write_evaluation(place, seen)
    _show(seen)
    for path in written:
        typer.echo(path)


@contextmanager
def _drawing(model: "Model", options: "SamplingOptions") -> "Iterator[ImageGenerator]":
    """Make a studio that says how far it is while the block runs."""
    from lorasmith.evaluation.image_generator import ImageGenerator

    with Console(stderr=True).status("measuring") as status:
        drawn = 0

        def advance(count: int) -> None:
            nonlocal drawn
            drawn += count
            status.update(f"measuring, {drawn // options.num_inference_steps} pictures drawn")

        yield ImageGenerator(model, options, advance)


def _evaluated(
    name: str,
    studio: "ImageGenerator",
    judge: "FeatureExtractor",
    seeds: Sequence[int],
    features: "Sequence[EvalConcept]",
    found: "Sequence[EvalTarget]",
    max_leak: float | None,
) -> "Evaluation":
    """Choose files, measure them and draw the page's pictures."""
    from lorasmith.evaluation.evaluator import Evaluator
    from lorasmith.evaluation.sample_images import make_image_tables
    from lorasmith.reports.evaluation_page import Evaluation, EvaluationContext

    options = studio.options
    context = EvaluationContext(
        name=name,
        model=studio.model.folder.name,
        feature_extractor=judge.name,
        device=studio.model.unet.device.type,
        seeds=list(seeds),
        sampling={
            "steps": options.num_inference_steps, "guidance": options.guidance_scale,
            "sampler": options.sampler,
            "side": studio.image_side,
        },
        max_leak=max_leak,
    )  # fmt: skip
    work = Evaluator(studio, judge, seeds)
    chosen, best = _choose(work, features, found, max_leak)
    return Evaluation(context, work.measure(best), chosen, make_image_tables(work, best))


def _place(out: Path | None, targets: Sequence[Path]) -> Path:
    if out is not None:
        return out.expanduser()
    return targets[0] if len(targets) == 1 and targets[0].is_dir() else Path("evaluation")


def _model_of(model: Path | None, found: "Sequence[EvalTarget]") -> Path | None:
    """Return the model folder, or None for the embedded one.

    Raises:
        ConfigError: the runs were trained on several.
    """
    if model is not None:
        return model.expanduser()
    folders = {one.run.model.path for one in found if one.run is not None}
    if len(folders) > 1:
        known = ", ".join(sorted(str(folder or "the embedded model") for folder in folders))
        raise ConfigError(f"--model: the runs were trained on {known}; say which to draw with")
    return next(iter(folders), None)


def _choose(
    work: "Evaluator",
    features: "Sequence[EvalConcept]",
    found: "Sequence[EvalTarget]",
    bound: float | None,
) -> "tuple[list[CheckpointChoice], list[EvalConcept]]":
    """Choose among the files of tags that have several."""
    from lorasmith.evaluation.checkpoint_choice import choose_best, measure_candidates
    from lorasmith.reports.evaluation_page import CheckpointChoice
    from lorasmith.training.eval_targets import step_of

    chosen, best = [], []
    for feature, one in zip(features, found, strict=True):
        if len(one.files) > 1 or bound is not None:
            files = [(file, step_of(file)) for file in one.files]
            candidates = measure_candidates(work.predictions(feature), files)
            choice = choose_best(candidates, bound)
            chosen.append(
                CheckpointChoice(one.tag, candidates, choice.best.file, choice.is_within_limit)
            )
            feature = replace(feature, file=choice.best.file)
        best.append(feature)
    return chosen, best


def _show(seen: "Evaluation") -> None:
    """Print the headline figures."""
    figures = seen.results
    console = Console()
    console = console if console.is_terminal else Console(width=_FILE_WIDTH)
    for one in seen.choices:
        kept = "" if one.is_within_limit else ": none keeps to --max-leak, this is the least leaky"
        console.print(f"{one.tag}: {one.best.name} of {len(one.candidates)} files{kept}")
    table = Table("tag")
    for column in ("fidelity", "base", "real", "gain", "leak, gated", "leak, no gate"):
        table.add_column(column, justify="right")
    for feature in figures.features:
        table.add_row(feature.tag, *_cells(feature))
    console.print(table)
    for name, found in (("gated", figures.gated), ("no gate", figures.plain)):
        if found is not None:
            lost = ", ".join(f"{kept.tag} {_share(kept.forgetting)}" for kept in found.forgetting)
            console.print(
                f"{name}: bleeding {_share(found.bleeding.share)} of the diagonal; "
                f"forgetting {lost}"
            )


def _cells(one: "ConceptResult") -> tuple[str, ...]:
    like = one.fidelity
    gated = "–" if one.gated is None else _share(one.gated.latent.ratio)
    return (
        f"{like.lora:.3f}",
        f"{like.base:.3f}",
        f"{like.ceiling:.3f}",
        _share(like.gain),
        gated,
        _share(one.plain.latent.ratio),
    )


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1%}"
