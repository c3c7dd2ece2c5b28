"""``lorasmith demo``: pictures from the embedded model, then a style taught to it."""

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
    "a dog face", "a frog", "a pizza", "an apple", "a smiling face with sunglasses",
    "a rocket", "a house", "a guitar",
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

    Writes `base.png`, the LoRA `inkmono.safetensors` and `inkmono.png`: the same prompts and
    seeds without and with it. A few minutes on two cores.

    Example: `lorasmith demo --out demo`
    """
    folder = writable_folder(out.expanduser())
    from lorasmith.inference.pipeline import load_pipeline

    pipe = load_pipeline(model)
    _show_base(pipe, folder / "base.png")
    file = _teach(model, steps, folder)
    _show_lora(pipe, file, folder / f"{TAG}.png")
    typer.echo(
        f'try it: lorasmith generate "a horse, {TAG} style <lora:{TAG}:1>" --lora-dir {folder}'
    )


def _show_base(pipe: "Pipeline", path: Path) -> None:
    """Draw what the model can do by itself."""
    from lorasmith.inference.pictures import make_labelled_grid, save_png

    pictures = _draw(pipe, PROMPTS, "drawing with the base model")
    save_png(make_labelled_grid([pictures], column_labels=PROMPTS), path)
    typer.echo(f"{path}: {len(pictures)} pictures from the base model")


def _teach(model: Path | None, steps: int | None, folder: Path) -> Path:
    """Train the LoRA on the pictures that ship with the package."""
    from lorasmith.config.run import ModelSettings, OutputSettings, TrainData, TrainRun
    from lorasmith.config.run import TrainSettings as Train
    from lorasmith.training.loop import train

    clear_previous(folder)
    run = TrainRun(
        data=TrainData(path=DEMO_DATA, tag=TAG),
        output=OutputSettings(name=f"{folder}/{TAG}"),
        model=ModelSettings(path=model),
        train=Train() if steps is None else Train(steps=steps),
    )
    started = time.perf_counter()
    file = train(run)
    seconds = time.perf_counter() - started
    typer.echo(
        f"{file}: a LoRA trained on {len(list(DEMO_DATA.glob('*.png')))} pictures of one style "
        f"(tag {TAG}), {run.train.steps} steps in {seconds:.0f} s"
    )
    return file


def _show_lora(pipe: "Pipeline", file: Path, path: Path) -> None:
    """Draw the same prompts from the same seeds without and with the LoRA."""
    from lorasmith.inference.pictures import make_labelled_grid, save_png

    prompts = [f"{concept}, {TAG} style" for concept in CONCEPTS]
    before = _draw(pipe, prompts, "drawing without the LoRA")
    pipe.load_lora(file)
    after = _draw(pipe, prompts, "drawing with the LoRA")
    pipe.unload_lora()
    title = (
        f'"..., {TAG} style": the same prompts and seeds, things not among the training pictures'
    )
    grid = make_labelled_grid([before, after], ["base model", "with the LoRA"], CONCEPTS, title)
    save_png(grid, path)
    typer.echo(f"{path}: {len(CONCEPTS)} other things, base model above, with the LoRA below")


def _draw(pipe: "Pipeline", prompts: Sequence[str], title: str) -> "list[Image.Image]":
    with progress_bar(title, len(prompts) * _SAMPLING_STEPS) as advance:
        return pipe(list(prompts), seed=_SEED, steps=_SAMPLING_STEPS, progress=advance)


def clear_previous(folder: Path) -> None:
    """Remove the LoRA and the run files of an earlier demo; anything else is left alone."""
    run = folder / TAG
    for path in (folder / f"{TAG}.safetensors", run / "run.toml", run / "log.jsonl"):
        path.unlink(missing_ok=True)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()
