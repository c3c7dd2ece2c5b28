"""The pretraining loop, with a network of twelve weights."""

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.config.pretrain import PretrainTrainerConfig
from lorasmith.core.errors import ConfigError, OutputError, TrainingError, WeightsError
from lorasmith.loops.tracking import read_log
from lorasmith.pretraining.loop import Interrupted, Microbatch, PretrainLoop


def make_settings(output_dir: Path, **options: object) -> PretrainTrainerConfig:
    defaults = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.05,
        "lr_warmup_steps": 0,
        "log_every_n_steps": 2,
    }
    return PretrainTrainerConfig(
        **{"output_dir": output_dir, "device": "cpu", "tensorboard": False, **defaults, **options}
    )


class Run:
    """Trains a network to map noise of the loop to a constant."""

    def __init__(self, resume: bool = False, **options: object) -> None:
        self.loop = PretrainLoop(make_settings(**options), "test", resume)
        torch.manual_seed(0)
        self.model = self.loop.add_module("model", nn.Linear(5, 2), ema=True)
        self.noise: list[torch.Tensor] = []
        self.nan_step = -1

    def train(self) -> nn.Module:
        for step in self.loop.steps():
            self.step = step
            self.loop.train_step(step, torch.arange(4), self.compute_gradients)
        return self.loop.module("model")

    def compute_gradients(self, microbatch: Microbatch) -> None:
        noise = microbatch.rng.normal(5)
        self.noise.append(torch.cat([noise, microbatch.indices.unsqueeze(1).float()], dim=1))
        loss = (self.model(noise) - 1.0).square().mean()
        if self.step == self.nan_step:
            loss = loss * float("nan")
        self.loop.backward(loss)
        self.loop.record_metrics(loss=loss)


def test_steps_are_logged_and_saved(tmp_path: Path) -> None:
    run = Run(output_dir=tmp_path, steps=50)
    run.train()
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == list(range(2, 51, 2))
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0].keys() >= {"loss", "lr", "grad_norm/model", "images_per_s", "time"}
    assert records[-1]["lr"] < records[0]["lr"] <= 0.05
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000050"]


def test_checkpoints_are_saved_at_their_interval(tmp_path: Path) -> None:
    Run(output_dir=tmp_path, checkpoint_every_n_steps=2, keep_checkpoints=2).train()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]


def test_accumulated_microbatches_equal_a_single_batch(tmp_path: Path) -> None:
    full, accumulated = (
        Run(output_dir=tmp_path / "1"),
        Run(output_dir=tmp_path / "2", batch_size=2, gradient_accumulation_steps=2),
    )
    first, second = full.train(), accumulated.train()
    assert torch.equal(torch.cat(full.noise), torch.cat(accumulated.noise))
    assert len(accumulated.noise) == 2 * len(full.noise)
    torch.testing.assert_close(first.weight, second.weight, atol=1e-6, rtol=1e-5)
    assert not torch.equal(full.noise[0], full.noise[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mixed_precision": "fp16"},
            r"train\.mixed_precision: fp16 needs a GPU; use bf16 or fp32",
        ),
        ({"cuda_graph": True}, r"train\.cuda_graph: a CUDA graph needs exactly one CUDA GPU"),
    ],
)
def test_settings_that_need_a_gpu_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run(output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bf16_and_full_precision_in_one_process(tmp_path: Path) -> None:
    full = Run(output_dir=tmp_path / "1").train()
    half = Run(output_dir=tmp_path / "2", mixed_precision="bf16").train()
    assert half.weight.dtype == torch.float32
    assert not torch.equal(full.weight, half.weight)
    torch.testing.assert_close(full.weight, half.weight, atol=0.05, rtol=0.0)


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run = Run(output_dir=tmp_path, checkpoint_every_n_steps=2)
    run.nan_step = 3
    with pytest.raises(TrainingError, match=r"not finite at step 3; the last checkpoint is intact"):
        run.train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert len(read_log(tmp_path / "log.jsonl")) == 1


class InterruptedRun(Run):
    """Gets a Ctrl-C in its third step."""

    def compute_gradients(self, microbatch: Microbatch) -> None:
        super().compute_gradients(microbatch)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    run = InterruptedRun(output_dir=tmp_path)
    with pytest.raises(Interrupted, match="stopped after step 3 of 6; --resume goes on"):
        run.train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    resumed = Run(resume=True, output_dir=tmp_path)
    uninterrupted = Run(output_dir=tmp_path / "uninterrupted")
    first, second = resumed.train(), uninterrupted.train()
    assert len(resumed.noise) == 3
    assert torch.equal(first.weight, second.weight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [2, 4, 6]


def test_resumed_ema_is_the_same(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        InterruptedRun(output_dir=tmp_path / "1", ema_decay=0.9).train()
    runs = (
        Run(resume=True, output_dir=tmp_path / "1", ema_decay=0.9),
        Run(output_dir=tmp_path / "2", ema_decay=0.9),
    )
    averages = []
    for run in runs:
        plain = run.train().weight.clone()
        with run.loop.ema_weights("model"):
            averages.append(run.loop.module("model").weight.clone())
        assert not torch.equal(plain, averages[-1])
    assert torch.equal(*averages)


def test_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Run(output_dir=tmp_path).train()
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume"):
        Run(output_dir=tmp_path)
    with pytest.raises(OutputError, match="holds no checkpoint to resume from"):
        Run(resume=True, output_dir=tmp_path / "other")


def test_checkpoint_of_another_network_is_an_error(tmp_path: Path) -> None:
    Run(output_dir=tmp_path).train()
    loop = PretrainLoop(make_settings(tmp_path), "test", resume=True)
    loop.add_module("model", nn.Linear(5, 3))
    with pytest.raises(WeightsError, match=r"model: the checkpoint does not fit these settings"):
        next(iter(loop.steps()))
