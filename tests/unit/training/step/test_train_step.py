"""One optimizer step: which parameters move, and values that are not finite."""

from dataclasses import replace

import pytest
import torch

from helpers.training.training_steps import take_step
from lorasmith.loops.optimization.optimizers import ParamGroup, create_optimizer
from lorasmith.training.data.batch import Batch
from lorasmith.training.step.train_step import TrainStep


def make_step(
    tiny_training, optimizer: str = "adamw", clip: float = 1.0, rate: float = 1e-2, **more
):
    groups = [ParamGroup("unet", tiny_training.parameters, rate)]
    torch_optimizer, _ = create_optimizer(optimizer, groups)
    step = TrainStep(
        tiny_training.objective(), tiny_training.parameters, torch_optimizer, clip, **more
    )
    return step, torch_optimizer


def test_only_adapters_get_gradients_and_move(tiny_training) -> None:
    unet = tiny_training.model.unet
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    step, _ = make_step(tiny_training)
    for number in range(2):
        take_step(step, [tiny_training.part(tiny_training.objective(), 4, number)], 4)

    moved = {n for n, p in unet.named_parameters() if not torch.equal(p.detach(), before[n])}
    adapters = {n for n in before if ".adapters." in n}
    # At 8x8 latents the middle block sees a single token, whose attention to itself is constant.
    constant = {
        n for n in adapters if "mid_block" in n and ("attn1.to_q" in n or "attn1.to_k" in n)
    }
    assert moved <= adapters
    assert adapters - moved <= constant
    assert all(p.grad is None for n, p in unet.named_parameters() if ".adapters." not in n)


@pytest.mark.parametrize(("clip", "norm"), [(1e-3, 1e-3), (0.0, None), (1e6, None)])
def test_gradients_are_clipped_or_left_alone(
    tiny_training, clip: float, norm: float | None
) -> None:
    step, _ = make_step(tiny_training, clip=clip)
    figures = take_step(step, [tiny_training.part(tiny_training.objective())], 2)
    left = torch.cat([p.grad.flatten() for p in tiny_training.parameters]).norm()
    assert float(figures.grad_norm) > 2e-3
    assert float(left) == pytest.approx(norm or float(figures.grad_norm), rel=1e-3)


def test_training_on_a_single_batch_lowers_its_loss(tiny_training) -> None:
    step, _ = make_step(tiny_training)
    part = tiny_training.part(tiny_training.objective())
    losses = [float(take_step(step, [part], 2).loss) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.01
    assert step.failed_step() is None


def test_uneven_parts_equal_a_single_batch(tiny_training) -> None:
    """Gradients and figures of a batch do not depend on how it is divided."""
    objective = tiny_training.objective()
    batch, drawn = tiny_training.part(objective, 5)
    batch = replace(batch, loss_weights=torch.tensor([1.0, 1.0, 0.25, 1.0, 0.5]))

    def gradients(cuts: list[slice]) -> tuple[torch.Tensor, list[float]]:
        step, _ = make_step(tiny_training, clip=0.0, rate=1e-30)
        parts = [(cut_batch(batch, cut), type(drawn)(*(x[cut] for x in drawn))) for cut in cuts]
        figures = take_step(step, parts, 5)
        flat = torch.cat([p.grad.flatten() for p in tiny_training.parameters])
        return flat.clone(), [float(value) for value in figures[:3]]

    full, parts = gradients([slice(0, 5)]), gradients([slice(0, 2), slice(2, 5)])
    torch.testing.assert_close(full[0], parts[0], atol=1e-7, rtol=1e-4)
    assert full[1] == pytest.approx(parts[1], rel=1e-5)
    assert float(full[0].norm()) > 0


def cut_batch(batch: Batch, cut: slice) -> Batch:
    return replace(
        batch, latents=batch.latents[cut],
        loss_weights=batch.loss_weights[cut], indices=batch.indices[cut],
        context=batch.context[cut],
    )  # fmt: skip


def test_process_without_images_takes_the_same_step(tiny_training) -> None:
    """The gradients of the other processes arrive although this process had no images."""

    def all_reduce(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.add_(1.0)

    step, _ = make_step(tiny_training, clip=0.0, all_reduce=all_reduce)
    before = [p.detach().clone() for p in tiny_training.parameters]
    figures = take_step(step, [], 2)
    assert float(figures.loss) == 1.0
    assert all(bool((p.grad == 1.0).all()) for p in tiny_training.parameters)
    assert all(
        bool((p < old).all()) for p, old in zip(tiny_training.parameters, before, strict=True)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "prodigy", "adafactor"])
@pytest.mark.parametrize("source", ["loss", "gradient"])
def test_optimizer_does_not_move_after_a_step_that_is_not_finite(
    tiny_training, optimizer: str, source: str
) -> None:
    step, torch_optimizer = make_step(tiny_training, optimizer)
    objective = tiny_training.objective()
    take_step(step, [tiny_training.part(objective, seed=0)], 2)
    take_step(step, [tiny_training.part(objective, seed=1)], 2)
    weights = [p.detach().clone() for p in tiny_training.parameters]
    state = [
        {key: torch.as_tensor(value).clone() for key, value in torch_optimizer.state[p].items()}
        for p in tiny_training.parameters
    ]
    batch, drawn = tiny_training.part(objective, seed=2)
    if source == "loss":
        drawn.noise[0, 0, 0, 0] = torch.nan
        take_step(step, [(batch, drawn)], 2)
    else:
        hook = tiny_training.parameters[3].register_hook(lambda gradient: gradient * torch.inf)
        take_step(step, [(batch, drawn)], 2)
        hook.remove()
    assert step.failed_step() == 2

    take_step(
        step, [tiny_training.part(objective, seed=3)], 2
    )  # finite again, but the flag has not been read yet

    assert step.failed_step() == 2
    assert all(torch.equal(p, w) for p, w in zip(tiny_training.parameters, weights, strict=True))
    for parameter, before in zip(tiny_training.parameters, state, strict=True):
        current_state = torch_optimizer.state[parameter]
        assert all(
            torch.equal(torch.as_tensor(current_state[key]), value) for key, value in before.items()
        )


def test_loss_scaling_changes_nothing_and_skips_what_overflows(tiny_training) -> None:
    start = [p.detach().clone() for p in tiny_training.parameters]
    plain, _ = make_step(tiny_training)
    for number in range(3):
        take_step(plain, [tiny_training.part(tiny_training.objective(), seed=number)], 2)
    expected = [p.detach().clone() for p in tiny_training.parameters]
    for parameter, value in zip(tiny_training.parameters, start, strict=True):
        parameter.data.copy_(value)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled, _ = make_step(tiny_training, scaler=scaler)
    for number in range(3):
        if number == 1:  # too large for the loss scale: the step is skipped, the run continues
            hook = tiny_training.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
            take_step(scaled, [tiny_training.part(tiny_training.objective(), seed=9)], 2)
            hook.remove()
        take_step(scaled, [tiny_training.part(tiny_training.objective(), seed=number)], 2)
    assert scaler.get_scale() == 2.0**11
    assert scaled.failed_step() is None
    for parameter, value in zip(tiny_training.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-6, rtol=1e-4)


def test_gradients_that_always_overflow_are_an_error_in_the_end(tiny_training) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**3)
    step, _ = make_step(tiny_training, scaler=scaler)
    tiny_training.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    part = tiny_training.part(tiny_training.objective())
    for _ in range(20):
        take_step(step, [part], 2)
    assert step.failed_step() is not None
    assert step.failed_step() > 5


def test_loss_that_is_not_finite_under_loss_scaling_is_an_error_at_once(tiny_training) -> None:
    step, _ = make_step(tiny_training, scaler=torch.amp.GradScaler("cpu"))
    batch, drawn = tiny_training.part(tiny_training.objective())
    drawn.noise[0] = torch.nan
    take_step(step, [(batch, drawn)], 2)
    assert step.failed_step() == 0
