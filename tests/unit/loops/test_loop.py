"""The frame of a pretraining loop, around a network of twelve weights."""

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.config.pretrain import PretrainTrainerConfig
from lorasmith.core.errors import ConfigError, OutputError, TrainingError, WeightsError
from lorasmith.loops.optimized_module import OptimizedModule
from lorasmith.loops.tracking import read_log
from lorasmith.pretraining.loop import Interrupted, Loop, Part
from lorasmith.pretraining.optimizer import adamw


def settings(output_dir: Path, **more: object) -> PretrainTrainerConfig:
    needed = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.05,
        "lr_warmup_steps": 0,
        "log_every_n_steps": 2,
    }
    return PretrainTrainerConfig(
        **{"output_dir": output_dir, "device": "cpu", "tensorboard": False, **needed, **more}
    )


class Run:
    """Learns to map noise to a constant; the noise comes from the loop."""

    def __init__(self, resume: bool = False, **more: object) -> None:
        self.loop = Loop(settings(**more), "test", resume)
        torch.manual_seed(0)
        self.model = self.loop.add("model", nn.Linear(5, 2), ema=True)
        self.noise: list[torch.Tensor] = []
        self.spoil_at = -1

    def go(self) -> nn.Module:
        for step in self.loop.steps():
            self.step = step
            self.loop.learn(step, torch.arange(4), self.learn)
        return self.loop.module("model")

    def learn(self, part: Part) -> None:
        noise = part.draws.normal(5)
        self.noise.append(torch.cat([noise, part.numbers.unsqueeze(1).float()], dim=1))
        loss = (self.model(noise) - 1.0).square().mean()
        if self.step == self.spoil_at:
            loss = loss * float("nan")
        self.loop.backward(loss)
        self.loop.note(loss=loss)


def test_steps_are_logged_and_saved(tmp_path: Path) -> None:
    run = Run(output_dir=tmp_path, steps=50)
    run.go()
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == list(range(2, 51, 2))
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0].keys() >= {"loss", "lr", "grad_norm/model", "images_per_s", "time"}
    assert records[-1]["lr"] < records[0]["lr"] <= 0.05
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000050"]


def test_checkpoints_come_as_often_as_asked(tmp_path: Path) -> None:
    Run(output_dir=tmp_path, checkpoint_every_n_steps=2, keep_checkpoints=2).go()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    whole, parts = (
        Run(output_dir=tmp_path / "1"),
        Run(output_dir=tmp_path / "2", batch_size=2, gradient_accumulation_steps=2),
    )
    one, two = whole.go(), parts.go()
    assert torch.equal(torch.cat(whole.noise), torch.cat(parts.noise))
    assert len(parts.noise) == 2 * len(whole.noise)
    torch.testing.assert_close(one.weight, two.weight, atol=1e-6, rtol=1e-5)
    assert not torch.equal(whole.noise[0], whole.noise[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"mixed_precision": "fp16"},
            r"train\.mixed_precision: fp16 needs a GPU; use bf16 or fp32",
        ),
        ({"cuda_graph": True}, r"train\.cuda_graph: a CUDA graph needs exactly one CUDA GPU"),
    ],
)
def test_what_the_cpu_cannot_do_is_refused(tmp_path: Path, more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run(output_dir=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_bf16_and_full_precision_in_one_process(tmp_path: Path) -> None:
    full = Run(output_dir=tmp_path / "1").go()
    half = Run(output_dir=tmp_path / "2", mixed_precision="bf16").go()
    assert half.weight.dtype == torch.float32
    assert not torch.equal(full.weight, half.weight)
    torch.testing.assert_close(full.weight, half.weight, atol=0.05, rtol=0.0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run = Run(output_dir=tmp_path, checkpoint_every_n_steps=2)
    run.spoil_at = 3
    with pytest.raises(TrainingError, match=r"not finite at step 3; the last checkpoint is intact"):
        run.go()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert len(read_log(tmp_path / "log.jsonl")) == 1


class InterruptedRun(Run):
    """Gets a Ctrl-C in the middle of its third step."""

    def learn(self, part: Part) -> None:
        super().learn(part)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    run = InterruptedRun(output_dir=tmp_path)
    with pytest.raises(Interrupted, match="stopped after step 3 of 6; --resume goes on"):
        run.go()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    resumed = Run(resume=True, output_dir=tmp_path)
    straight = Run(output_dir=tmp_path / "straight")
    one, two = resumed.go(), straight.go()
    assert len(resumed.noise) == 3
    assert torch.equal(one.weight, two.weight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [2, 4, 6]


def test_a_resumed_average_is_the_same(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        InterruptedRun(output_dir=tmp_path / "1", ema_decay=0.9).go()
    runs = (
        Run(resume=True, output_dir=tmp_path / "1", ema_decay=0.9),
        Run(output_dir=tmp_path / "2", ema_decay=0.9),
    )
    averages = []
    for run in runs:
        plain = run.go().weight.clone()
        with run.loop.averaged("model"):
            averages.append(run.loop.module("model").weight.clone())
        assert not torch.equal(plain, averages[-1])
    assert torch.equal(*averages)


def test_a_folder_that_holds_a_run_is_not_trained_over(tmp_path: Path) -> None:
    Run(output_dir=tmp_path).go()
    with pytest.raises(OutputError, match="already holds a run; continue it with --resume"):
        Run(output_dir=tmp_path)
    with pytest.raises(OutputError, match="holds no checkpoint to resume from"):
        Run(resume=True, output_dir=tmp_path / "other")


def test_a_checkpoint_of_another_network_does_not_fit(tmp_path: Path) -> None:
    Run(output_dir=tmp_path).go()
    loop = Loop(settings(tmp_path), "test", resume=True)
    loop.add("model", nn.Linear(5, 3))
    with pytest.raises(WeightsError, match=r"model: the checkpoint does not fit these settings"):
        next(iter(loop.steps()))


def test_two_networks_share_one_loss_scaler() -> None:
    def make(seed: int) -> OptimizedModule:
        torch.manual_seed(seed)
        module = nn.Linear(3, 1)
        return OptimizedModule(module, module, adamw([module], 0.1, 0.0), 0.1, None)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled, plain = [make(0), make(1)], [make(0), make(1)]
    for step in range(3):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for one, two in zip(scaled, plain, strict=True):
            scaler.scale(one.module(inputs).square().mean()).backward()
            two.module(inputs).square().mean().backward()
        norms = [(one.clip_and_step(0.5, scaler), two.clip_and_step(0.5, None))
                 for one, two in zip(scaled, plain, strict=True)]  # fmt: skip
        scaler.update()
        for with_scaler, without in norms:
            torch.testing.assert_close(with_scaler, without)
    for one, two in zip(scaled, plain, strict=True):
        torch.testing.assert_close(one.module.weight, two.module.weight)
