"""Run folders as training writes them, without the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.reports.noisy_curves import LossTrend, learning, losses
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.train_config import TrainConfig
from lorasmith.inference.outputs.save import save_png
from lorasmith.loops.tracking import Tracker
from lorasmith.runs.summary import RunSummary

PROMPTS = ("a bell, inkmono style", "a <script>alert('x')</script> & \"owl\", inkmono style")


def make_config(folder: Path, **sections: Any) -> TrainConfig:
    data = {"path": "pictures", "tag": "inkmono"}
    return TrainConfig.model_validate(
        {"data": data, "output": {"name": str(folder)}, "lora": {"rank": 8}} | sections
    )


def write_run(
    folder: Path, trend: LossTrend = learning, held_out: Sequence[float] = (1.0, 0.82, 0.78, 0.77),
    steps: int = 250, interval: int = 100, finished: bool = True, seed: int = 0,
) -> Path:  # fmt: skip
    """A run's folder: settings, log, previews of two prompts, and the summary of a finished one.

    Args:
        folder: where.
        trend: of the training loss.
        held_out: validation loss relative to the base model's, from step 0 on.
        steps: in the run, 10 to a line of the log.
        every: steps between two validations; the last comes at the end.
        finished: with ``summary.json``.
        seed: of the noise.
    """
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(dump_toml(make_config(folder)), encoding="utf-8")
    validation_steps = [*range(0, steps, interval), steps][: len(held_out)]
    shares = dict(zip(validation_steps, held_out, strict=True))
    curve = losses(trend, seed, steps=steps)
    noisy = dict(zip(curve.steps.astype(int).tolist(), curve.values.tolist(), strict=True))
    with Tracker(folder, tensorboard=False) as tracker:
        for step in sorted({*noisy, *shares}):
            tracker.log(step, _metrics(step, steps, noisy, shares))
    for step in shares:
        write_preview(folder, step, step / steps)
    if finished:
        make_summary(folder, steps).write(folder / "summary.json")
    return folder


def _metrics(
    step: int, steps: int, noisy: dict[int, float], shares: dict[int, float]
) -> dict[str, float]:
    rate = 2e-3 * (0.55 + 0.45 * float(np.cos(np.pi * step / steps)))
    metrics: dict[str, float] = {}
    if step in noisy:
        norm = 0.04 + 0.3 * noisy[step]
        metrics |= {"loss": noisy[step], "grad_norm": norm, "lr": rate, "images_per_s": 14.0}
    if step in shares:
        base, lora = 0.0812, 0.0812 * shares[step]
        metrics |= {
            "validation_loss": lora,
            "validation_loss_base": base,
            "validation_loss_gain": base - lora,
        }
    return metrics


def write_preview(folder: Path, step: int, black: float, side: int = 32) -> None:
    """Write two images that turn from red to black, with their prompts."""
    subfolder = folder / "previews" / f"step-{step:06d}"
    subfolder.mkdir(parents=True)
    for i, prompt in enumerate(PROMPTS):
        image = Image.new("RGB", (side, side), (round(200 * (1 - black)), 0, 0))
        image.info["parameters"] = f"{prompt}\nSteps: 15, Sampler: DDIM, Seed: {i}"
        save_png(image, subfolder / f"{i:04d}.png")


def make_summary(folder: Path, steps: int) -> RunSummary:
    return RunSummary(
        name=folder.name, tag="inkmono", family="sd1", images=22, validation_images=2, steps=steps,
        seconds=151.2, parameters=1_310_720, layers=128, best_step=steps,
        sha256="0f" * 32, file=f"{folder.name}.safetensors", device="cpu", model="embedded",
    )  # fmt: skip
