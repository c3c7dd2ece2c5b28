import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.models.families.family import PREDICTION_TYPES, PredictionType
from lorasmith.models.noise_schedule import (
    NoiseSchedule,
    compute_alphas_cumprod,
    convert_prediction,
)

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
ALL = torch.arange(1000)


def process(**more: object) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler({**CONFIG, **more}, torch.device("cpu"))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(6, 4, 2, 3),
        torch.randn(6, 4, 2, 3),
        torch.tensor([0, 1, 250, 500, 998, 999]),
    )


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_alphas_cumprod_equal_diffusers(schedule: str) -> None:
    reference = DDPMScheduler(**{**CONFIG, "beta_schedule": schedule}).alphas_cumprod
    alphas = process(beta_schedule=schedule).alphas_cumprod
    assert alphas.dtype == torch.float32
    torch.testing.assert_close(alphas, reference, rtol=2e-5, atol=1e-7)


def test_schedules_of_other_lengths_and_defaults_equal_diffusers() -> None:
    torch.testing.assert_close(
        NoiseSchedule.from_scheduler({}, torch.device("cpu")).alphas_cumprod,
        DDPMScheduler().alphas_cumprod, rtol=2e-5, atol=1e-7,
    )  # fmt: skip
    assert process(num_train_timesteps=10).num_timesteps == 10


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_read_from_the_scheduler(prediction: str, betas: str) -> None:
    config = {"beta_schedule": betas, "rescale_betas_zero_snr": True}
    schedule = process(**config, prediction_type=prediction)
    reference = DDIMScheduler(**{**CONFIG, **config}).alphas_cumprod
    assert schedule.alphas_cumprod[-1] == 0.0
    torch.testing.assert_close(schedule.alphas_cumprod, reference, rtol=1e-3, atol=1e-6)


def test_zero_terminal_snr_with_noise_prediction_is_refused() -> None:
    with pytest.raises(ConfigError, match="set rescale_betas_zero_snr to false"):
        process(rescale_betas_zero_snr=True, prediction_type="epsilon")


@pytest.mark.parametrize(("beta_end", "steps"), [(0.5, 1000), (0.02, 10_000)])
def test_betas_that_leave_no_signal_are_refused(beta_end: float, steps: int) -> None:
    with pytest.raises(ConfigError, match="use a smaller beta_end, or fewer num_train_timesteps"):
        process(beta_schedule="linear", beta_end=beta_end, num_train_timesteps=steps)


def test_trained_betas_are_refused() -> None:
    assert process(trained_betas=None).num_timesteps == 1000
    with pytest.raises(ConfigError, match="trained_betas"):
        process(trained_betas=[0.1, 0.2])


def test_noisy_latents_and_targets_equal_diffusers(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    clean, noise, timesteps = batch
    reference = DDPMScheduler(**CONFIG)
    velocity = reference.get_velocity(clean, noise, timesteps)
    targets = {"epsilon": noise, "v_prediction": velocity, "sample": clean}
    for prediction in PREDICTION_TYPES:
        schedule = process(prediction_type=prediction)
        torch.testing.assert_close(
            schedule.add_noise(clean, noise, timesteps),
            reference.add_noise(clean, noise, timesteps), rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        target = schedule.training_target(clean, noise, timesteps)
        torch.testing.assert_close(target, targets[prediction], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", PREDICTION_TYPES)
@pytest.mark.parametrize("target", PREDICTION_TYPES)
def test_predictions_convert_into_each_other_and_back(
    source: PredictionType, target: PredictionType
) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, 5, generator=generator, dtype=torch.float64)
    alpha = compute_alphas_cumprod("scaled_linear", 0.00085, 0.012).double().view(-1, 1)
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    noisy = signal * clean + sigma * noise
    plain = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - sigma * clean}
    there = convert_prediction(plain[source], noisy, alpha, source, target)
    torch.testing.assert_close(there, plain[target], rtol=1e-9, atol=1e-9)
    # Any prediction, not only the true one, means one noise, one v and one image.
    wrong = plain[source] + torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    there = convert_prediction(wrong, noisy, alpha, source, target)
    back = convert_prediction(there, noisy, alpha, target, source)
    torch.testing.assert_close(back, wrong, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", PREDICTION_TYPES)
def test_schedule_converts_its_own_predictions(
    source: PredictionType, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    clean, noise, timesteps = batch
    schedule = process(prediction_type=source)
    noisy = schedule.add_noise(clean, noise, timesteps)
    prediction = schedule.training_target(clean, noise, timesteps)
    for target in PREDICTION_TYPES:
        expected = process(prediction_type=target).training_target(clean, noise, timesteps)
        converted = schedule.convert(prediction, noisy, timesteps, target)
        torch.testing.assert_close(converted, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("source", ["v_prediction", "sample"])
def test_conversions_hold_at_a_level_of_pure_noise(
    source: str, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    clean, noise, _ = batch
    last = torch.full((len(clean),), 999)
    schedule = process(rescale_betas_zero_snr=True, prediction_type=source)
    noisy = schedule.add_noise(clean, noise, last)
    assert torch.equal(noisy, noise)
    prediction = schedule.training_target(clean, noise, last)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": -clean}
    for target in PREDICTION_TYPES:
        converted = schedule.convert(prediction, noisy, last, target)
        torch.testing.assert_close(converted, expected[target])


def test_snr_equals_diffusers() -> None:
    expected = compute_snr(DDPMScheduler(**CONFIG), ALL)
    torch.testing.assert_close(process().snr(ALL), expected, rtol=1e-3, atol=1e-7)


@given(gamma=st.floats(0.1, 20.0))
def test_min_snr_weights_equal_their_formula(gamma: float) -> None:
    schedule = process()
    snr = schedule.alphas_cumprod.double() / (1 - schedule.alphas_cumprod.double())
    capped = torch.where(snr < gamma, snr, gamma)
    expected_weights = {
        "epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped,
    }  # fmt: skip
    for prediction, expected in expected_weights.items():
        weight = process(prediction_type=prediction).min_snr_weight(ALL, gamma)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_min_snr_weighs_one_error_of_the_image_alike_for_all_predictions(prediction: str) -> None:
    schedule = process(prediction_type=prediction)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, 8, generator=generator)
    noisy = schedule.add_noise(clean, noise, ALL)
    guess = process(prediction_type="sample").convert(clean + 0.1, noisy, ALL, prediction)
    error = (guess - schedule.training_target(clean, noise, ALL)).square().mean(dim=1)
    weighted = error * schedule.min_snr_weight(ALL, 5.0)
    expected = 0.1**2 * process().snr(ALL).clamp(max=5.0)
    torch.testing.assert_close(weighted, expected, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_weights_are_finite_at_a_level_of_pure_noise(prediction: str) -> None:
    schedule = process(rescale_betas_zero_snr=True, prediction_type=prediction)
    weights = schedule.min_snr_weight(ALL, 5.0)
    assert bool(weights.isfinite().all())
    assert float(weights[-1]) == 0.0


def test_unsupported_schedule_is_named() -> None:
    with pytest.raises(
        ConfigError,
        match="beta_schedule 'squaredcos' is not supported; use scaled_linear, linear or squ",
    ):
        compute_alphas_cumprod("squaredcos", 0.1, 0.2)
    with pytest.raises(
        ConfigError, match="prediction_type 'flow' is not supported; use epsilon, v_pre"
    ):
        process(prediction_type="flow")
