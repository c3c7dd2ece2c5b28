"""Training commands on a tiny model, and what they left behind."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasmith.cli import run
from lorasmith.loops.checkpoint import load_checkpoint
from lorasmith.training.run_step import JointTrainStep, Microbatch
from lorasmith.training.step.train_step import TrainStep

VALIDATION = (
    "validation.every_n_steps=2",
    "validation.num_inference_steps=1",
    "validation.num_images=1",
    "validation.loss_timesteps=2",
)
"""Settings of runs with quick validations."""


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def train(tiny_model: Path, pictures: Path, out: str, *more: str) -> int:
    """Train six steps without validation, unless the further arguments say otherwise."""
    required = ["--data", str(pictures), "--tag", "inkmono", "--out", out, "-m", str(tiny_model)]
    quick = sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false")
    return run(["train", *required, *quick, "--steps", "6", *more])


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def list_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return sorted(
        int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*")
    )


def checkpoint_tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint: weights, averages and the optimizer."""
    return load_checkpoint(folder / "checkpoints" / f"step-{step:08}").tensors


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "images_per_s")} for line in lines]


@contextmanager
def during_step(step: int, action: Callable[[TrainStep], None]) -> Iterator[list[list[int]]]:
    """Call ``action`` in the middle of a step (from 1); yield the images of each step."""
    compute_gradients, steps = JointTrainStep._compute_gradients, []

    def compute_with_action(self: JointTrainStep, microbatches: Sequence[Microbatch]) -> None:
        steps.append([i for item in microbatches for i in item.batch.indices.tolist()])
        if len(steps) == step:
            action(self._steps[0])
        compute_gradients(self, microbatches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointTrainStep, "_compute_gradients", compute_with_action)
        yield steps


def press_ctrl_c(_: object = None) -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def ctrl_c_at(count: int) -> Iterator[None]:
    """Press Ctrl-C during the ``count``-th optimizer step (from 1)."""
    finish, calls = TrainStep.finish, 0

    def finish_with_ctrl_c(self: TrainStep) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            press_ctrl_c()
        return finish(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "finish", finish_with_ctrl_c)
        yield
