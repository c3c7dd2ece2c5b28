"""``lorasmith demo``: pictures from the embedded model, a style taught to it, then two tags."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorasmith.cli.demo_tags import CLASS, COOK, show_tags, teach_cook
from lorasmith.core.files import ensure_writable_folder, write_text
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

    from lorasmith.inference.pipeline import Pipeline
    from lorasmith.runs.paths import RunPaths

DEMO_DATA = Path(__file__).resolve().parent.parent / "demo_data"
"""24 captioned pictures of a style that the embedded model has never seen."""

TAG = "inkmono"
CONCEPTS = (
    "a dog face", "a frog", "a penguin", "an apple", "a smiling face with sunglasses",
    "a house", "a bell", "a bicycle",
)  # fmt: skip
"""What the LoRA is tried on. None of it is among the 24 pictures."""
ROWS = {"base model": "", "LoRA, with its tag": f", {TAG} style", "LoRA, without it, gate off": ""}
"""The rows of the grid, and what stands behind the concept in their prompts."""

PROMPTS = (
    "a red apple, noto style",
    "a cat face, twemoji style",
    "a rocket, fluent style",
    "a sailboat, fluent-flat style",
    "a grinning face, blob style",
    "a house, fluent3d style",
    "a pizza, emojitwo style",
    "a yellow flower, noto style",
)
"""What the model itself is asked for first."""

_SEED = 7
_SAMPLING_STEPS = 20
_STEPS, _RATE = 120, 8e-3
"""Fewer and larger steps than the defaults: the demo is to take less than four minutes."""
_GUIDANCE = 3.0
"""For the style: less than usual, as guidance also exaggerates what colour is left."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Folder, .safetensors file or cached id.", show_default="embedded"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="120")] = None,
) -> None:
    """Draw pictures, teach the model a new style and new clothes, and switch them by their tags.

    Writes `base.png`, `taught.png` (what is learned from), the LoRA `inkmono.safetensors`,
    `inkmono.png` (the same things from the same seeds: base model, LoRA with its tag, LoRA without
    it as other programs draw it, with no gate), the training's `report.html`, a second LoRA
    `cookqz.safetensors`, `tags.png` (the same seeds with no tag, either and both) and
    `metrics.json`. A few minutes on two cores.

    Example: `lorasmith demo --out demo`
    """
    folder = ensure_writable_folder(out.expanduser())
    from lorasmith.inference.pipeline import load_pipeline

    started = time.perf_counter()
    pipe = load_pipeline(model)
    _show_base(pipe, folder)
    paths = _teach(model, steps, folder)
    drawn = _show_lora(pipe, paths.lora, folder)
    metrics = _measure(drawn, paths)
    files = {TAG: paths.lora, COOK: teach_cook(model, steps, folder)}
    metrics["tags"] = show_tags(pipe.model, files, folder)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    typer.echo(
        f'try it: lorasmith generate "a snowman, {TAG} style <lora:{TAG}:1>" '
        f"--guidance {_GUIDANCE:g} --lora-dir {folder}"
    )
    typer.echo(
        f'    and: lorasmith generate "a woman {COOK} {CLASS}, {TAG} style" '
        f"--guidance {_GUIDANCE:g} --library {folder}"
    )


def _show_base(pipe: "Pipeline", folder: Path) -> None:
    """Draw what the model can do by itself."""
    from lorasmith.inference.outputs.save import make_labelled_grid, save_png

    typer.echo(f"1/5 drawing {len(PROMPTS)} pictures with the base model")
    pictures = _draw(pipe, PROMPTS)
    save_png(make_labelled_grid([pictures], column_labels=PROMPTS), folder / "base.png")
    typer.echo(f"    {folder / 'base.png'}")


def _teach(model: Path | None, steps: int | None, folder: Path) -> "RunPaths":
    """Train the LoRA on the pictures that ship with the package."""
    import lorasmith
    from lorasmith.config.train_config import TrainConfig
    from lorasmith.inference.outputs.save import make_grid, save_png
    from lorasmith.runs.paths import RunPaths

    paths = RunPaths.from_name(f"{folder.absolute()}/{TAG}")
    clear_previous(paths)
    run = TrainConfig.model_validate(
        {
            "data": {"path": DEMO_DATA, "tag": TAG},
            "output": {"name": str(paths.folder)},
            "model": {"path": model},
            "train": {"steps": steps or _STEPS, "learning_rate": _RATE},
            "validation": {"every_n_steps": _STEPS // 2, "num_images": 2},
        }
    )
    pictures = taught_pictures()
    typer.echo(
        f"2/5 teaching it a style from {len(pictures)} pictures, {run.train.steps} steps, "
        f"{_patience(run.train.steps)}"
    )
    save_png(make_grid(pictures, columns=8), folder / "taught.png")
    started = time.perf_counter()
    file = lorasmith.train(run)
    size, seconds = file.stat().st_size / 2**20, time.perf_counter() - started
    page = folder / "report.html"
    write_text(page, paths.report.read_text(encoding="utf-8"))
    typer.echo(f"    {folder / file.name}, {size:.1f} MiB, {seconds:.0f} s, from taught.png")
    typer.echo(f"    {page}: how the training went, for a browser")
    return paths


def _show_lora(pipe: "Pipeline", file: Path, folder: Path) -> "dict[str, list[Image.Image]]":
    """Draw things that were not taught, each row of the grid from the same seeds."""
    from lorasmith.inference.outputs.save import make_labelled_grid, save_png

    typer.echo(
        f"3/5 drawing {len(CONCEPTS)} things that were not among those, without and with the LoRA"
    )
    drawn = {}
    for row, ending in ROWS.items():
        prompts = [f"{concept}{ending}" for concept in CONCEPTS]
        drawn[row] = _draw(pipe, prompts, _GUIDANCE)
        if not pipe.loaded_loras:
            # Under its gate the last row would be the first again; as an ordinary LoRA it shows
            # what other programs draw.
            pipe.load_lora(file, gate=False)
    pipe.unload_lora()
    title = (
        "The same seeds in each column; none of these things was among the training pictures. "
        "With its gate on, as it is unless asked for, the last row equals the first."
    )
    grid = make_labelled_grid(list(drawn.values()), list(drawn), CONCEPTS, title)
    save_png(grid, folder / f"{TAG}.png")
    typer.echo(f"    {folder / f'{TAG}.png'}")
    return drawn


def _measure(drawn: "dict[str, list[Image.Image]]", paths: "RunPaths") -> dict[str, Any]:
    """Say in numbers whether the colour is gone, and what the training gained."""
    from lorasmith.evaluation.metrics.saturation import measure_color
    from lorasmith.loops.tracking import read_log
    from lorasmith.reports.advice import relative_validation_loss
    from lorasmith.runs.summary import RunSummary

    names = ("base", "with_tag", "without_tag")
    sets = dict(zip(names, drawn.values(), strict=True)) | {"taught": taught_pictures()}
    colours = {name: measure_color(pictures) for name, pictures in sets.items()}
    typer.echo(
        f"    colour left (saturation): {colours['base'].saturation:.3f} in the base model's, "
        f"{colours['with_tag'].saturation:.3f} with the tag, "
        f"{colours['without_tag'].saturation:.3f} without it and its gate off, "
        f"{colours['taught'].saturation:.3f} in the pictures it learned from"
    )
    summary, shares = (
        RunSummary.read(paths.summary),
        relative_validation_loss(read_log(paths.log)).values,
    )
    training = {
        "steps": summary.steps,
        "pictures": summary.images,
        "seconds": summary.seconds,
        "held_out_loss_over_base": round(float(shares[-1]), 4) if len(shares) else None,
    }
    return {"training": training} | {
        name: {field: round(value, 4) for field, value in colour._asdict().items()}
        for name, colour in colours.items()
    }


def _draw(pipe: "Pipeline", prompts: Sequence[str], guidance: float = 5.0) -> "list[Image.Image]":
    with progress_bar("drawing", len(prompts) * _SAMPLING_STEPS) as advance:
        return pipe(
            list(prompts),
            seed=_SEED,
            num_inference_steps=_SAMPLING_STEPS,
            guidance_scale=guidance,
            progress=advance,
        )


def _patience(steps: int) -> str:
    return "about two minutes on two cores" if steps > 50 else "a moment"


def taught_pictures() -> "list[Image.Image]":
    """Return the pictures that the LoRA learns from."""
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted(DEMO_DATA.glob("*.png"))]


def clear_previous(paths: "RunPaths") -> None:
    """Remove the LoRA of an earlier demo and its run's files; anything else is left alone."""
    files = [
        paths.lora, paths.settings, paths.log, paths.crops, paths.summary, paths.report,
        paths.best_lora,
    ]  # fmt: skip
    for file in files:
        file.unlink(missing_ok=True)
    for folder in (paths.checkpoints, paths.previews, paths.folder / "tensorboard"):
        shutil.rmtree(folder, ignore_errors=True)
