"""``lorasmith demo``: pictures from the embedded model, then a style taught to it."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasmith.core.files import writable_folder
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

    from lorasmith.inference.pipeline import Pipeline

DEMO_DATA = Path(__file__).resolve().parent.parent / "demo_data"
"""24 captioned pictures of a style that the embedded model has never seen."""

TAG = "inkmono"
CONCEPTS = (
    "a dog face", "a frog", "a penguin", "an apple", "a smiling face with sunglasses",
    "a house", "a bell", "a bicycle",
)  # fmt: skip
"""What the LoRA is tried on. None of it is among the 24 pictures."""

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
_GUIDANCE = 3.0
"""For the style: less than usual, as guidance also exaggerates what colour is left."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="A diffusers model folder.", show_default="embedded"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="as `train` has them")
    ] = None,
) -> None:
    """Draw pictures, teach the model a new style, and show it on things it was not taught with.

    Writes `base.png`, `taught.png` (what is learned from), the LoRA `inkmono.safetensors`,
    `inkmono.png` (the same prompts and seeds without and with it) and `metrics.json`. A few
    minutes on two cores.

    Example: `lorasmith demo --out demo`
    """
    folder = writable_folder(out.expanduser())
    from lorasmith.inference.pipeline import load_pipeline

    pipe = load_pipeline(model)
    _show_base(pipe, folder)
    file = _teach(model, steps, folder)
    _show_lora(pipe, file, folder)
    typer.echo(
        f'try it: lorasmith generate "a snowman, {TAG} style <lora:{TAG}:1>" '
        f"--guidance {_GUIDANCE:g} --lora-dir {folder}"
    )


def _show_base(pipe: "Pipeline", folder: Path) -> None:
    """Draw what the model can do by itself."""
    from lorasmith.inference.pictures import make_labelled_grid, save_png

    typer.echo(f"1/3 drawing {len(PROMPTS)} pictures with the base model")
    pictures = _draw(pipe, PROMPTS)
    save_png(make_labelled_grid([pictures], column_labels=PROMPTS), folder / "base.png")
    typer.echo(f"    {folder / 'base.png'}")


def _teach(model: Path | None, steps: int | None, folder: Path) -> Path:
    """Train the LoRA on the pictures that ship with the package."""
    from lorasmith.config.run import ModelSettings, OutputSettings, TrainData, TrainRun
    from lorasmith.config.run import TrainSettings as Train
    from lorasmith.inference.pictures import make_grid, save_png
    from lorasmith.training.loop import train

    clear_previous(folder)
    run = TrainRun(
        data=TrainData(path=DEMO_DATA, tag=TAG),
        output=OutputSettings(name=f"{folder}/{TAG}"),
        model=ModelSettings(path=model),
        train=Train() if steps is None else Train(steps=steps),
    )
    pictures = taught_pictures()
    typer.echo(
        f"2/3 teaching it a style from {len(pictures)} pictures, {run.train.steps} steps, "
        f"{_patience(run.train.steps)}"
    )
    save_png(make_grid(pictures, columns=8), folder / "taught.png")
    started = time.perf_counter()
    file = train(run)
    size, seconds = file.stat().st_size / 2**20, time.perf_counter() - started
    typer.echo(f"    {file}, {size:.1f} MiB, in {seconds:.0f} s; it learned from taught.png")
    return file


def _show_lora(pipe: "Pipeline", file: Path, folder: Path) -> None:
    """Draw the same prompts from the same seeds without and with the LoRA."""
    from lorasmith.inference.pictures import make_labelled_grid, save_png

    typer.echo(
        f"3/3 drawing {len(CONCEPTS)} things that were not among those, without and with the LoRA"
    )
    prompts = [f"{concept}, {TAG} style" for concept in CONCEPTS]
    before = _draw(pipe, prompts, _GUIDANCE)
    pipe.load_lora(file)
    after = _draw(pipe, prompts, _GUIDANCE)
    pipe.unload_lora()
    title = (
        f'"..., {TAG} style": the same prompts and seeds, things not among the training pictures'
    )
    grid = make_labelled_grid([before, after], ["base model", "with the LoRA"], CONCEPTS, title)
    save_png(grid, folder / f"{TAG}.png")
    typer.echo(f"    {folder / f'{TAG}.png'}")
    _measure(before, after, folder / "metrics.json")


def _measure(before: "Sequence[Image.Image]", after: "Sequence[Image.Image]", path: Path) -> None:
    """Write in numbers whether the colour is gone."""
    from lorasmith.core.files import write_text
    from lorasmith.evaluation.colour import colour_of

    sets = {"base": before, "lora": after, "taught": taught_pictures()}
    colours = {name: colour_of(pictures) for name, pictures in sets.items()}
    rounded = {
        name: {field: round(value, 4) for field, value in colour._asdict().items()}
        for name, colour in colours.items()
    }
    write_text(path, json.dumps(rounded, indent=2) + "\n")
    figures = [f"{colours[name].saturation:.3f}" for name in ("base", "lora", "taught")]
    typer.echo(
        f"    colour left (saturation): {figures[0]} without, {figures[1]} with it, "
        f"{figures[2]} in the pictures it learned from"
    )


def _draw(pipe: "Pipeline", prompts: Sequence[str], guidance: float = 5.0) -> "list[Image.Image]":
    with progress_bar("drawing", len(prompts) * _SAMPLING_STEPS) as advance:
        return pipe(
            list(prompts), seed=_SEED, steps=_SAMPLING_STEPS, guidance=guidance, progress=advance
        )


def _patience(steps: int) -> str:
    return "a few minutes on two cores" if steps > 50 else "a moment"


def taught_pictures() -> "list[Image.Image]":
    """Return the pictures that the LoRA learns from."""
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted(DEMO_DATA.glob("*.png"))]


def clear_previous(folder: Path) -> None:
    """Remove the LoRA of an earlier demo and its run files; anything else is left alone."""
    from lorasmith.training.paths import RunPaths

    paths = RunPaths.of(f"{folder}/{TAG}")
    for path in (paths.lora, paths.settings, paths.log):
        path.unlink(missing_ok=True)
