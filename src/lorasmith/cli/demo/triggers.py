"""The second half of ``lorasmith demo``: a second tag, and both as triggers."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.cli.output import print_line
from lorasmith.loops.progress import progress_bar

if TYPE_CHECKING:
    from lorasmith.evaluation.image_generator import GeneratedImages, ImageGenerator
    from lorasmith.models.model import Model

COOK_DATA = Path(__file__).resolve().parents[2] / "demo_cook"
"""12 captioned images of cooks, whose clothes the embedded model has never seen."""

COOK_TAG, CLASS_WORD = "cookqz", "worker"
STEPS = 40
"""Few, so that the demo stays short: clothes are learned sooner than a style."""
_BATCH, _RATE, _WARMUP = 6, 4e-3, 5
SUBJECTS = ("a man", "a woman", "a")
"""One for each seed."""
_SEED = 7
_SAMPLING_STEPS, _GUIDANCE = 12, 3.0


def train_cook(model: Path | None, steps: int | None, folder: Path) -> Path:
    """Train the second tag and return its LoRA.

    Args:
        model: the base model's folder; None is the embedded one.
        steps: fewer than usual, for a quick try.
        folder: the demo's.
    """
    import lorasmith
    from lorasmith.cli.demo.files import clear_previous
    from lorasmith.runs.paths import RunPaths

    count = len(list(COOK_DATA.glob("*.png")))
    steps = STEPS if steps is None else min(steps, STEPS)
    print_line(f"4/5 training a second tag, the clothes of cooks: {count} images, {steps} steps")
    paths = RunPaths.from_name(f"{folder.absolute()}/{COOK_TAG}")
    clear_previous(paths)
    started = time.perf_counter()
    file = lorasmith.train(
        {
            "data": {"path": COOK_DATA, "tag": COOK_TAG, "class_word": CLASS_WORD},
            "output": {"name": str(paths.folder)},
            "model": {"path": model},
            "train": {
                "steps": steps, "batch_size": _BATCH, "learning_rate": _RATE,
                "lr_warmup_steps": _WARMUP,
            },
            "validation": {"every_n_steps": 0},
        }
    )  # fmt: skip
    print_line(f"    {folder / file.name}, {time.perf_counter() - started:.0f} s")
    return file


def show_tags(model: "Model", files: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Generate four images per seed (no tag, either, both) and return the leak ratios.

    Args:
        model: the base model.
        files: the LoRAs by their tags, the style first.
        folder: where ``tags.png`` goes.
    """
    from lorasmith.evaluation.image_generator import ImageGenerator
    from lorasmith.inference.options import SamplingOptions
    from lorasmith.inference.outputs.save import make_labelled_grid, save_png

    style, cook = files
    prompts = _prompts(style, cook)
    num_images = len(SUBJECTS) * (len(prompts) + 5)
    print_line(
        f"5/5 generating with both tags as triggers, four images of each of {len(SUBJECTS)} seeds"
    )
    with progress_bar("generating", num_images * _SAMPLING_STEPS) as advance:
        options = SamplingOptions(num_inference_steps=_SAMPLING_STEPS, guidance_scale=_GUIDANCE)
        generator = ImageGenerator(model, options, advance)
        loaded = list(files.values())
        drawn = {name: _draw(generator, texts, loaded) for name, texts in prompts.items()}
        leaks = _leaks(generator, prompts, files, drawn)
    rows = list(zip(*(row.images for row in drawn.values()), strict=True))
    title = (
        "Each row is one seed. Both LoRAs are loaded; each is active where the prompt has its tag."
    )
    labels = [prompt.partition(",")[0] for prompt in prompts["no tag"]]
    save_png(make_labelled_grid(rows, labels, list(prompts), title), folder / "tags.png")
    print_line(f"    {folder / 'tags.png'}")
    exact = "bit for bit the base model's" if leaks["exact"] else "NOT the base model's"
    print_line(f"    without a tag the images are {exact}: the leak ratio is {leaks['gated']:g}")
    plain = ", ".join(f"{tag} {ratio:.0%}" for tag, ratio in leaks["plain"].items())
    print_line(f"    leak ratio of the same files in programs without gates: {plain}")
    return leaks


def _prompts(style: str, cook: str) -> dict[str, list[str]]:
    """Return the prompts of each column, one per seed."""
    return {
        "no tag": [f"{subject} {CLASS_WORD}, fluent style" for subject in SUBJECTS],
        style: [f"{subject} {CLASS_WORD}, {style} style" for subject in SUBJECTS],
        cook: [f"{subject} {cook} {CLASS_WORD}, fluent style" for subject in SUBJECTS],
        f"{style} and {cook}": [
            f"{subject} {cook} {CLASS_WORD}, {style} style" for subject in SUBJECTS
        ],
    }


def _draw(
    generator: "ImageGenerator",
    prompts: Sequence[str],
    files: Sequence[Path] = (),
    gate: bool = True,
) -> "GeneratedImages":
    return generator.generate(prompts, range(_SEED, _SEED + len(prompts)), files, gate)


def _leaks(
    generator: "ImageGenerator",
    prompts: dict[str, list[str]],
    files: dict[str, Path],
    drawn: "dict[str, GeneratedImages]",
) -> dict[str, Any]:
    """Return leak ratios in final latents, under the gates and of each file without its gate."""
    from lorasmith.evaluation.metrics.triggers import changes, leak_ratio

    base = _draw(generator, prompts["no tag"])
    silent = changes(drawn["no tag"].latents, base.latents, "latent")
    plain, gated = {}, {}
    for tag, file in files.items():
        with_tag = changes(drawn[tag].latents, _draw(generator, prompts[tag]).latents, "latent")
        ungated = _draw(generator, prompts["no tag"], [file], gate=False)
        without = changes(ungated.latents, base.latents, "latent")
        gated[tag] = leak_ratio(silent, with_tag) or 0.0
        plain[tag] = round(leak_ratio(without, with_tag) or 0.0, 4)
    return {
        "exact": bool((drawn["no tag"].latents == base.latents).all()),
        "gated": max(gated.values()),
        "plain": plain,
    }
