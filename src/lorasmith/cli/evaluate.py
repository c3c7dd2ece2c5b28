"""``lorasmith evaluate``: does a trigger word bring its concept, and nothing without it?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from lorasmith.cli.options import evaluate as options
from lorasmith.cli.options.common import Device, InferenceSteps
from lorasmith.cli.options.foreign import EvaluateCommand
from lorasmith.cli.output import print_line
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.evaluation.results import ConceptResult, Evaluation

_FILE_WIDTH = 120


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("evaluate", cls=EvaluateCommand)(evaluate)


def evaluate(
    targets: options.Targets,
    data: options.Data = None,
    out: options.OutFolder = None,
    seeds: options.NumSeeds = 8,
    seed: options.FirstSeed = 0,
    max_leak: options.MaxLeak = None,
    class_word: options.ClassWord = None,
    feature_extractor: options.FeatureExtractor = None,
    model: options.ModelOfRun = None,
    allow_mismatch: options.AllowMismatch = False,
    steps: InferenceSteps = 20,
    guidance: options.GuidanceScale = 5.0,
    size: options.Size = None,
    batch_size: options.BatchSize = 8,
    device: Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Measure LoRAs: fidelity, leak without the trigger word, bleeding between words, forgetting.

    Writes `evaluation.json` and `evaluation.html`, a self-contained page with images. The formula
    of each metric is in docs/evaluation.md. Of a run with several saved files, or several files of
    one trigger word (tag), the best is chosen first, by the loss on the validation images.

    Example: `lorasmith evaluate loras/inkmono --max-leak 0.2`
    """
    from lorasmith.inference.options import SamplingOptions, parse_optional_size
    from lorasmith.reports.pages.evaluation import HTML, JSON
    from lorasmith.training.evaluation import evaluate as api

    width, height = parse_optional_size(size)
    sampling = SamplingOptions(
        num_inference_steps=steps, guidance_scale=guidance,
        width=width, height=height, batch_size=batch_size,
    )  # fmt: skip
    folder = out.expanduser() if out is not None else api.default_output_folder(targets)
    with _show_progress(steps) as advance:
        evaluation = api.evaluate(
            targets, data=data, out=folder, num_seeds=seeds, first_seed=seed, max_leak=max_leak,
            class_word=class_word, feature_extractor=feature_extractor, model=model,
            options=sampling, allow_mismatch=allow_mismatch, device=device, precision=precision,
            progress=advance,
        )  # fmt: skip
    _print_results(evaluation)
    for file in (folder / JSON, folder / HTML):
        if file.is_file():
            print_line(file)


@contextmanager
def _show_progress(steps: int) -> Iterator[Callable[[int], None]]:
    """Show how many images are generated, given the image steps done."""
    with open_console(stderr=True).status("measuring") as status:
        steps_done = 0

        def advance(count: int) -> None:
            nonlocal steps_done
            steps_done += count
            status.update(f"measuring, {steps_done // steps} images generated")

        yield advance


def _print_results(evaluation: "Evaluation") -> None:
    results = evaluation.results
    console = open_console(file_width=_FILE_WIDTH)
    for choice in evaluation.choices:
        note = "" if choice.is_within_limit else ": none is within --max-leak, this leaks least"
        count = len(choice.candidates)
        console.print(f"{choice.tag}: {choice.best.name} of {count} files{note}")
    table = Table("tag")
    for column in ("fidelity", "base", "real", "gain", "leak, gated", "leak, no gate"):
        table.add_column(column, justify="right")
    for result in results.features:
        table.add_row(result.tag, *_cells(result))
    console.print(table)
    for mode, joint in (("gated", results.gated), ("no gate", results.plain)):
        if joint is not None:
            lost = ", ".join(
                f"{result.tag} {_percent(result.forgetting)}" for result in joint.forgetting
            )
            console.print(
                f"{mode}: bleeding {_percent(joint.bleeding.share)} of the diagonal; "
                f"forgetting {lost}"
            )


def _cells(result: "ConceptResult") -> tuple[str, ...]:
    fidelity = result.fidelity
    return (
        f"{fidelity.lora:.3f}",
        f"{fidelity.base:.3f}",
        f"{fidelity.ceiling:.3f}",
        _percent(fidelity.gain),
        "–" if result.gated is None else _percent(result.gated.latent.ratio),
        _percent(result.plain.latent.ratio),
    )


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return "0" if share == 0 else f"{share:.1%}"
