"""Losses against plain computations in float64, one number at a time."""

import math
import re
import warnings
from dataclasses import replace

import pytest
import torch

from lorasmith.config.optimization import LossConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.models.families.family import PREDICTION_TYPES
from lorasmith.models.noise_schedule import compute_alphas_cumprod, rescale_zero_terminal_snr
from lorasmith.registries import LOSS_WEIGHTINGS
from lorasmith.training.losses import (
    LossContext,
    Noise,
    build_noise_process,
    capturable,
    diffusion_loss,
    is_capturable,
    sample_noise,
    weighted_mean,
)
from lorasmith.training.step.train_step import compute_loss


def plain_alphas(zero_snr: bool) -> list[float]:
    """Stable Diffusion's schedule, and algorithm 1 of arXiv:2305.08891."""
    start, end, product, alphas = 0.00085**0.5, 0.012**0.5, 1.0, []
    for step in range(1000):
        product *= 1 - (start + (end - start) * step / 999) ** 2
        alphas.append(product)
    if not zero_snr:
        return alphas
    roots = [math.sqrt(a) for a in alphas]
    first, last = roots[0], roots[-1]
    return [((root - last) * first / (first - last)) ** 2 for root in roots]


def plain_loss(tiny_training, objective, batch, drawn, number: int, kind: str) -> float:
    """The loss of one image, from the network's output on."""
    settings = objective.settings
    t = int(drawn.timesteps[number])
    a = plain_alphas(settings.zero_terminal_snr)[t]
    clean, noise = batch.latents[number].double(), drawn.noise[number].double()
    noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * noise
    with torch.no_grad():
        text = batch.context[number : number + 1]
        predicted = tiny_training.model.unet(noisy.float()[None], torch.tensor([t]), text).sample[0]
    velocity = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
    target = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]
    error = ((predicted.double() - target) ** 2).flatten().tolist()
    weights = [1.0] * len(error)
    if batch.loss_mask is not None and settings.masked:
        weights = batch.loss_mask[number].double().expand(4, 8, 8).flatten().tolist()
    loss = sum(w * e for w, e in zip(weights, error, strict=True)) / sum(weights)
    if settings.min_snr_gamma > 0:
        snr = a / (1 - a)
        capped = min(snr, settings.min_snr_gamma)
        if kind == "epsilon":
            loss *= capped / snr if snr else 1.0
        else:
            loss *= capped if kind == "sample" else capped / (snr + 1)
    return loss


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("min_snr", [0.0, 5.0])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.filterwarnings("ignore:train.loss.zero_terminal_snr")
@torch.no_grad()
def test_losses_equal_plain_computations(
    tiny_training, kind: str, min_snr: float, mask: bool, zero_snr: bool
) -> None:
    for adapter in tiny_training.trainable.adapters.values():
        adapter.up.data.normal_(0.0, 0.1)
    objective = tiny_training.objective(kind, min_snr_gamma=min_snr, zero_terminal_snr=zero_snr)
    batch = tiny_training.batch(4, mask=mask)
    noise = torch.randn(4, 4, 8, 8, generator=make_generator(1))
    drawn = Noise(torch.tensor([0, 120, 640, 999]), noise)
    losses = compute_loss(objective, batch, drawn)
    expected = [plain_loss(tiny_training, objective, batch, drawn, k, kind) for k in range(4)]
    assert losses.tolist() == pytest.approx(expected, rel=2e-4)
    assert all(math.isfinite(value) for value in expected)


@torch.no_grad()
def test_mask_counts_by_its_share_and_not_at_all_where_it_is_off(tiny_training) -> None:
    objective = tiny_training.objective()
    batch, drawn = tiny_training.part(objective)
    plain = compute_loss(objective, batch, drawn)
    grey = replace(batch, loss_mask=torch.full((2, 1, 8, 8), 0.3))
    torch.testing.assert_close(compute_loss(objective, grey, drawn), plain)
    black = replace(batch, loss_mask=torch.zeros(2, 1, 8, 8))
    assert compute_loss(objective, black, drawn).tolist() == [0.0, 0.0]
    ignoring = tiny_training.objective(masked=False)
    torch.testing.assert_close(compute_loss(ignoring, black, drawn), plain)


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as reference

    start, end = 0.00085**0.5, 0.012**0.5
    betas = torch.linspace(start, end, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - reference(betas), 0)
    ours = rescale_zero_terminal_snr(compute_alphas_cumprod("scaled_linear", 0.00085, 0.012))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-7)
    assert ours[-1] == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "epsilon"}, "predicts the noise and learns nothing"),
        ({"prediction_type": "v_prediction"}, "set rescale_betas_zero_snr to true in the model"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, None),
    ],
)
def test_zero_terminal_snr_warns_where_the_model_does_not_fit(
    config: dict[str, object], message: str | None
) -> None:
    on, cpu = LossConfig(zero_terminal_snr=True), torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_noise_process(config, LossConfig(), cpu)
        assert not caught
        assert build_noise_process(config, on, cpu).alphas_cumprod[-1] == 0.0
    assert [warning.category for warning in caught] == [LorasmithWarning] * (message is not None)
    assert all(re.search(str(message), str(warning.message)) for warning in caught)


def test_weights_add_up_to_the_full_batch() -> None:
    losses, weight = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 0.5, 0.0])
    parts = [weighted_mean(losses[k : k + 2], weight[k : k + 2], 4) for k in (0, 2)]
    assert float(sum(parts)) == pytest.approx((1 + 2 + 1.5) / 4)


def test_noise_follows_the_generator_whatever_the_division(tiny_training) -> None:
    objective = tiny_training.objective(noise_offset=0.1)
    batch = tiny_training.batch(6)

    def drawn(first: int = 0, count: int | None = None, step: int = 3) -> Noise:
        part = replace(batch, latents=batch.latents[first : first + (count or 6)])
        rng = BatchRng(make_generator(0, 1, step), 6, first, count)
        return sample_noise(objective.process, objective.settings, part, rng)

    full, parts = drawn(), [drawn(0, 2), drawn(2, 4)]
    assert torch.equal(full.noise, torch.cat([part.noise for part in parts]))
    assert torch.equal(full.timesteps, torch.cat([part.timesteps for part in parts]))
    assert not torch.equal(full.noise, drawn(step=4).noise)


def test_noise_levels_cover_the_full_range(tiny_training) -> None:
    objective = tiny_training.objective()
    batch = replace(tiny_training.batch(1), latents=torch.zeros(4000, 1, 1, 1))
    rng = BatchRng(make_generator(0), 4000)
    levels = sample_noise(objective.process, objective.settings, batch, rng).timesteps
    counts = torch.bincount(levels // 100, minlength=10)
    assert len(counts) == 10
    assert int(counts.min()) > 300


def test_offset_noise_moves_complete_channels(tiny_training) -> None:
    batch = replace(tiny_training.batch(1), latents=torch.zeros(500, 4, 8, 8))

    def noise(offset: float) -> torch.Tensor:
        objective = tiny_training.objective(noise_offset=offset)
        rng = BatchRng(make_generator(0), 500)
        return sample_noise(objective.process, objective.settings, batch, rng).noise

    added = noise(0.2) - noise(0.0)
    assert float(added.std(dim=(2, 3)).max()) < 1e-6  # constant within a channel
    assert float(added[:, :, 0, 0].std()) == pytest.approx(0.2, rel=0.05)
    assert torch.equal(noise(0.2), noise(0.2))


def context_of(tiny_training, prediction_error: float, **settings) -> LossContext:
    loss = tiny_training.objective("v_prediction", **settings)
    batch, noise = tiny_training.part(loss)
    target = loss.process.training_target(batch.latents, noise.noise, noise.timesteps)
    return LossContext(
        prediction=target + prediction_error,
        target=target,
        noise=noise.noise,
        timesteps=noise.timesteps,
        latents=batch.latents,
        weights=batch.loss_weights,
        mask=None,
        process=loss.process,
        settings=loss.settings,
    )


@pytest.mark.parametrize(("error", "loss"), [(0.0, 0.0), (0.5, 0.25)])
def test_diffusion_loss_is_the_mean_squared_error(tiny_training, error: float, loss: float) -> None:
    losses = diffusion_loss(context_of(tiny_training, error))
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([loss] * 2, rel=1e-5)


def test_constant_weighting_ignores_gamma(tiny_training) -> None:
    weighted = diffusion_loss(context_of(tiny_training, 0.5, min_snr_gamma=5.0))
    constant = diffusion_loss(
        context_of(tiny_training, 0.5, min_snr_gamma=5.0, weighting="constant")
    )
    off = diffusion_loss(context_of(tiny_training, 0.5, min_snr_gamma=0.0))
    assert torch.equal(constant, off)
    assert not torch.allclose(weighted, constant)


def test_registered_weighting_is_used(tiny_training) -> None:
    LOSS_WEIGHTINGS.register("double", lambda process, timesteps, settings: 2.0 + 0 * timesteps)
    try:
        doubled = diffusion_loss(context_of(tiny_training, 0.5, weighting="double"))
    finally:
        LOSS_WEIGHTINGS.unregister("double")
    assert doubled.tolist() == pytest.approx([0.5, 0.5], rel=1e-5)


def test_unknown_weighting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no loss weighting 'min_snrr'; did you mean 'min_snr'"):
        LossConfig(weighting="min_snrr")


def test_custom_loss_function_gets_the_context_and_is_used(tiny_training) -> None:
    contexts: list[LossContext] = []

    def l1_loss(context: LossContext) -> torch.Tensor:
        contexts.append(context)
        return (context.prediction.float() - context.target).abs().mean(dim=(1, 2, 3))

    loss = tiny_training.objective()._replace(loss_fn=l1_loss)
    batch, noise = tiny_training.part(loss)
    losses = compute_loss(loss, batch, noise)
    (context,) = contexts
    assert losses.requires_grad
    assert context.prediction.shape == context.target.shape == batch.latents.shape
    assert context.target is noise.noise or torch.equal(context.target, noise.noise)
    assert torch.equal(context.timesteps, noise.timesteps)
    assert torch.equal(context.latents, batch.latents)
    assert torch.equal(context.weights, batch.loss_weights)


def test_loss_function_must_return_a_loss_for_each_image(tiny_training) -> None:
    loss = tiny_training.objective()._replace(
        loss_fn=lambda context: context.prediction.float().mean()
    )
    batch, noise = tiny_training.part(loss)
    with pytest.raises(ConfigError, match=r"loss_fn: it returned shape \[\]; return one loss for"):
        compute_loss(loss, batch, noise)


def test_only_marked_loss_functions_are_capturable() -> None:
    def plain(context: LossContext) -> torch.Tensor:
        return context.weights

    assert not is_capturable(plain)
    assert is_capturable(capturable(plain))
    assert is_capturable(diffusion_loss)
