"""``lorasmith demo``: images of the embedded model, a style trained on it, then two tags."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.demo.style import (
    GUIDANCE,
    TAG,
    measure_style,
    show_base_model,
    show_style,
    train_style,
)  # fmt: skip
from lorasmith.cli.demo.triggers import CLASS_WORD, COOK_TAG, show_tags, train_cook
from lorasmith.cli.output import print_line
from lorasmith.core.files import ensure_writable_folder, write_text


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
    """Generate images, train a new style and new clothes, and switch them with their tags.

    Writes `base.png`, `taught.png` (the training images), the LoRA `inkmono.safetensors`,
    `inkmono.png` (the same things from the same seeds: base model, LoRA with its tag, LoRA without
    it as other programs generate it, with no gate), the training report `report.html`, a second
    LoRA `cookqz.safetensors`, `tags.png` (the same seeds with no tag, either and both) and
    `metrics.json`. A few minutes on two cores.

    Example: `lorasmith demo --out demo`
    """
    folder = ensure_writable_folder(out.expanduser())
    from lorasmith.inference.pipeline import load_pipeline

    started = time.perf_counter()
    pipe = load_pipeline(model)
    show_base_model(pipe, folder)
    paths = train_style(model, steps, folder)
    images = show_style(pipe, paths.lora, folder)
    metrics = measure_style(images, paths)
    files = {TAG: paths.lora, COOK_TAG: train_cook(model, steps, folder)}
    metrics["tags"] = show_tags(pipe.model, files, folder)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print_line(
        f'try it: lorasmith generate "a snowman, {TAG} style <lora:{TAG}:1>" '
        f"--guidance {GUIDANCE:g} --lora-dir {folder}"
    )
    print_line(
        f'    and: lorasmith generate "a woman {COOK_TAG} {CLASS_WORD}, {TAG} style" '
        f"--guidance {GUIDANCE:g} --library {folder}"
    )
