"""The first half of ``lorasmith demo``: images of the base model, and a style trained on it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.cli.demo.files import clear_previous
from lorasmith.cli.output import print_line
from lorasmith.core.files import write_text
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

    from lorasmith.inference.pipeline import Pipeline
    from lorasmith.runs.paths import RunPaths

DEMO_DATA = Path(__file__).resolve().parents[2] / "demo_data"
"""24 captioned images of a style that the embedded model has never seen."""

TAG = "inkmono"
CONCEPTS = (
    "a dog face", "a frog", "a penguin", "an apple", "a smiling face with sunglasses",
    "a house", "a bell", "a bicycle",
)  # fmt: skip
"""What the LoRA is tested with. None of it is among the 24 images."""
ROWS = {"base model": "", "LoRA, with its tag": f", {TAG} style", "LoRA, without it, gate off": ""}
"""The rows of the grid, and how their prompts end."""

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
"""Prompts of the base model's images."""

_SEED = 7
_SAMPLING_STEPS = 20
_STEPS, _RATE = 120, 8e-3
"""Fewer and larger steps than the defaults: the demo is to take less than four minutes."""
GUIDANCE = 3.0
"""For the style: less than usual, as guidance also exaggerates what color is left."""


def show_base_model(pipe: "Pipeline", folder: Path) -> None:
    """Generate images with the base model."""
    from lorasmith.inference.outputs.save import make_labelled_grid, save_png

    print_line(f"1/5 generating {len(PROMPTS)} images with the base model")
    images = _draw(pipe, PROMPTS)
    save_png(make_labelled_grid([images], column_labels=PROMPTS), folder / "base.png")
    print_line(f"    {folder / 'base.png'}")


def train_style(model: Path | None, steps: int | None, folder: Path) -> "RunPaths":
    """Train the LoRA on the images that ship with the package."""
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
    images = training_images()
    print_line(
        f"2/5 training a style from {len(images)} images, {run.train.steps} steps, "
        f"{_duration(run.train.steps)}"
    )
    save_png(make_grid(images, columns=8), folder / "taught.png")
    started = time.perf_counter()
    file = lorasmith.train(run)
    size, seconds = file.stat().st_size / 2**20, time.perf_counter() - started
    page = folder / "report.html"
    write_text(page, paths.report.read_text(encoding="utf-8"))
    print_line(f"    {folder / file.name}, {size:.1f} MiB, {seconds:.0f} s, from taught.png")
    print_line(f"    {page}: how the training went, for a browser")
    return paths


def show_style(pipe: "Pipeline", file: Path, folder: Path) -> "dict[str, list[Image.Image]]":
    """Generate concepts that were not trained, each row of the grid from the same seeds."""
    from lorasmith.inference.outputs.save import make_labelled_grid, save_png

    print_line(
        f"3/5 generating {len(CONCEPTS)} concepts not among those, without and with the LoRA"
    )
    images_by_row = {}
    for row, ending in ROWS.items():
        prompts = [f"{concept}{ending}" for concept in CONCEPTS]
        images_by_row[row] = _draw(pipe, prompts, GUIDANCE)
        if not pipe.loaded_loras:
            # Under its gate the last row would be the first again; as an ordinary LoRA it shows
            # what other programs generate.
            pipe.load_lora(file, gate=False)
    pipe.unload_lora()
    title = (
        "The same seeds in each column; none of these concepts was among the training images. "
        "With its gate on, as it is unless asked for, the last row equals the first."
    )
    grid = make_labelled_grid(list(images_by_row.values()), list(images_by_row), CONCEPTS, title)
    save_png(grid, folder / f"{TAG}.png")
    print_line(f"    {folder / f'{TAG}.png'}")
    return images_by_row


def measure_style(
    images_by_row: "dict[str, list[Image.Image]]", paths: "RunPaths"
) -> dict[str, Any]:
    """Measure the saturation, and what the training gained."""
    from lorasmith.evaluation.metrics.saturation import measure_color
    from lorasmith.loops.tracking import read_log
    from lorasmith.reports.advice import relative_validation_loss
    from lorasmith.runs.summary import RunSummary

    names = ("base", "with_tag", "without_tag")
    sets = dict(zip(names, images_by_row.values(), strict=True)) | {"taught": training_images()}
    colors = {name: measure_color(images) for name, images in sets.items()}
    print_line(
        f"    color left (saturation): {colors['base'].saturation:.3f} in the base model's, "
        f"{colors['with_tag'].saturation:.3f} with the tag, "
        f"{colors['without_tag'].saturation:.3f} without it and its gate off, "
        f"{colors['taught'].saturation:.3f} in the training images"
    )
    summary, shares = (
        RunSummary.read(paths.summary),
        relative_validation_loss(read_log(paths.log)).values,
    )
    training = {
        "steps": summary.steps,
        "pictures": summary.images,
        "seconds": summary.seconds,
        "validation_loss_over_base": round(float(shares[-1]), 4) if len(shares) else None,
    }
    return {"training": training} | {
        name: {field: round(value, 4) for field, value in colour._asdict().items()}
        for name, colour in colors.items()
    }


def _draw(pipe: "Pipeline", prompts: Sequence[str], guidance: float = 5.0) -> "list[Image.Image]":
    with progress_bar("generating", len(prompts) * _SAMPLING_STEPS) as advance:
        return pipe(
            list(prompts),
            seed=_SEED,
            num_inference_steps=_SAMPLING_STEPS,
            guidance_scale=guidance,
            progress=advance,
        )


def _duration(steps: int) -> str:
    return "about two minutes on two cores" if steps > 50 else "a moment"


def training_images() -> "list[Image.Image]":
    """Return the training images."""
    from lorasmith.data.images.decode import decode_image

    paths = sorted(DEMO_DATA.glob("*.png"))
    return [decode_image(path.read_bytes(), path.name) for path in paths]
