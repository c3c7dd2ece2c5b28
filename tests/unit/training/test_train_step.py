"""One optimizer step against plain formulas, and what happens to values that are not finite."""

from dataclasses import replace

import pytest
import torch

from lorasmith.core.device import generator
from lorasmith.loops.optim import adamw
from lorasmith.models.noise import NoiseProcess
from lorasmith.training.step import Batch, TrainStep, draw_batch, loss_of


def batch_of(bench, numbers: list[int], step: int = 0) -> Batch:
    return draw_batch(bench.data, torch.tensor(numbers), bench.process.steps, generator(0, 1, step))


def make_step(bench, fused: bool, clip: float = 1.0, rate: float = 1e-2) -> TrainStep:
    if fused:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(bench.parameters, lr=rate, fused=True)
    else:
        optimizer = adamw(list(bench.attached.adapters.values()), rate, 0.01)
    return TrainStep(bench.model.unet, bench.process, bench.parameters, optimizer, clip)


def test_a_batch_gathers_its_pictures_and_captions(bench) -> None:
    batch = batch_of(bench, [4, 1, 3])
    still = replace(bench.data, deviation=torch.zeros_like(bench.data.deviation))
    fixed = draw_batch(still, torch.tensor([4, 1, 3]), 1000, generator(0, 1, 0))

    assert torch.equal(fixed.clean, bench.data.mean[[4, 1, 3]])
    assert torch.equal(batch.context, bench.data.contexts[[0, 1, 1]])
    spread = (batch.clean - bench.data.mean[[4, 1, 3]]) / bench.data.deviation[[4, 1, 3]]
    assert float(spread.std()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(batch.noise, fixed.noise)
    assert float((batch.noise * spread).mean()) == pytest.approx(0.0, abs=0.15)


def test_draws_follow_the_generator_alone(bench) -> None:
    one, same, other = (batch_of(bench, [0, 1], step) for step in (3, 3, 4))
    assert torch.equal(one.clean, same.clean)
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.timesteps, same.timesteps)
    assert not torch.equal(one.noise, other.noise)


def test_timesteps_cover_the_whole_range(bench) -> None:
    numbers = torch.zeros(4000, dtype=torch.int64)
    levels = draw_batch(bench.data, numbers, 10, generator(0)).timesteps
    counts = torch.bincount(levels, minlength=10)
    assert len(counts) == 10
    assert int(counts.min()) > 300


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_loss_equals_a_plain_computation(bench, kind: str) -> None:
    from diffusers import DDPMScheduler

    config = {**bench.model.scheduler_config, "prediction_type": kind}
    process = NoiseProcess.from_scheduler(config, torch.device("cpu"))
    for adapter in bench.attached.adapters.values():
        adapter.up.data.normal_(0.0, 0.1)
    batch = batch_of(bench, [0, 2])
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )

    noisy = scheduler.add_noise(batch.clean, batch.noise, batch.timesteps)
    predicted = bench.model.unet(noisy, batch.timesteps, batch.context).sample
    if kind == "epsilon":
        target = batch.noise
    else:
        target = scheduler.get_velocity(batch.clean, batch.noise, batch.timesteps)
    expected = ((predicted - target) ** 2).mean()

    torch.testing.assert_close(loss_of(bench.model.unet, process, batch), expected)


def test_only_adapters_get_gradients_and_move(bench) -> None:
    unet = bench.model.unet
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    step = make_step(bench, fused=False)
    step(batch_of(bench, [0, 1, 2, 3]))
    step(batch_of(bench, [4, 0, 1, 2], 1))

    moved = {n for n, p in unet.named_parameters() if not torch.equal(p.detach(), before[n])}
    adapters = {n for n in before if ".adapters." in n}
    # At 8x8 latents the middle block sees a single token, whose attention to itself is constant.
    constant = {
        n for n in adapters if "mid_block" in n and ("attn1.to_q" in n or "attn1.to_k" in n)
    }
    assert moved <= adapters
    assert adapters - moved <= constant
    assert all(p.grad is None for n, p in unet.named_parameters() if ".adapters." not in n)


def test_gradients_are_clipped(bench) -> None:
    step = make_step(bench, fused=False, clip=1e-3)
    figures = step(batch_of(bench, [0, 1]))
    norm = torch.cat([p.grad.flatten() for p in bench.parameters]).norm()
    assert float(figures.grad_norm) > 1e-3
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_training_on_one_batch_lowers_its_loss(bench) -> None:
    step = make_step(bench, fused=False)
    batch = batch_of(bench, [0, 1])
    losses = [float(step(batch).loss) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.01
    assert step.failed_step() is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_optimizer_stays_from_the_first_bad_step_on(bench, fused: bool, where: str) -> None:
    step = make_step(bench, fused)
    step(batch_of(bench, [0, 1], 0))
    step(batch_of(bench, [2, 3], 1))
    weights = [p.detach().clone() for p in bench.parameters]
    state = [
        {key: value.clone() for key, value in step.optimizer.state[p].items()}
        for p in bench.parameters
    ]
    bad = batch_of(bench, [4, 0], 2)
    if where == "loss":
        bad.noise[0, 0, 0, 0] = torch.nan
        step(bad)
    else:
        hook = bench.parameters[3].register_hook(lambda gradient: gradient * torch.inf)
        step(bad)
        hook.remove()
    assert step.failed_step() == 2

    step(batch_of(bench, [1, 2], 3))  # good again, but nobody has looked yet

    assert step.failed_step() == 2
    assert all(torch.equal(p, w) for p, w in zip(bench.parameters, weights, strict=True))
    for parameter, before in zip(bench.parameters, state, strict=True):
        now = step.optimizer.state[parameter]
        assert all(torch.equal(now[key], value) for key, value in before.items())
