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
from lorasmith.training.joint_step import JointTrainStep, Microbatch
from lorasmith.training.train_step import TrainStep

LOOKS = (
    "validation.every_n_steps=2",
    "validation.num_inference_steps=1",
    "validation.num_images=1",
    "validation.loss_timesteps=2",
)
"""Settings of runs that look at themselves, quickly."""


def sets(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def train(tiny_model: Path, pictures: Path, out: str, *more: str) -> int:
    """Six steps without looks, unless the further arguments say otherwise."""
    needed = ["--data", str(pictures), "--tag", "inkmono", "--out", out, "-m", str(tiny_model)]
    quick = sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false")
    return run(["train", *needed, *quick, "--steps", "6", *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def files_under(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def steps_there(folder: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(
        int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*")
    )


def state_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint: weights, averages and the optimizer."""
    return load_checkpoint(folder / "checkpoints" / f"step-{step:08}").tensors


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []


def figures_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k not in ("time", "images_per_s")} for one in lines]


@contextmanager
def at_step(number: int, do: Callable[[TrainStep], None]) -> Iterator[list[list[int]]]:
    """Do something in the middle of a step (from 1); yields the pictures of every step taken."""
    plain, seen = JointTrainStep._compute_gradients, []

    def stepping(self: JointTrainStep, parts: Sequence[Microbatch]) -> None:
        seen.append([number for one in parts for number in one.batch.indices.tolist()])
        if len(seen) == number:
            do(self._steps[0])
        plain(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointTrainStep, "_compute_gradients", stepping)
        yield seen


def press_ctrl_c(_: object = None) -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def ctrl_c_at(count: int) -> Iterator[None]:
    """Press Ctrl-C while an optimizer moves for the ``count``-th time (from 1)."""
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
