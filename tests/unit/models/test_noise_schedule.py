import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.models.noise_schedule import NoiseSchedule, compute_alphas_cumprod

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


@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
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


def test_zero_terminal_snr_is_read_from_the_scheduler() -> None:
    schedule = process(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    reference = DDIMScheduler(**CONFIG, rescale_betas_zero_snr=True).alphas_cumprod
    assert schedule.alphas_cumprod[-1] == 0.0
    torch.testing.assert_close(schedule.alphas_cumprod, reference, rtol=1e-3, atol=1e-6)


def test_zero_terminal_snr_with_noise_prediction_is_refused() -> None:
    with pytest.raises(ConfigError, match="set rescale_betas_zero_snr to false"):
        process(rescale_betas_zero_snr=True, prediction_type="epsilon")


def test_trained_betas_are_refused() -> None:
    assert process(trained_betas=None).num_timesteps == 1000
    with pytest.raises(ConfigError, match="trained_betas"):
        process(trained_betas=[0.1, 0.2])


def test_noisy_latents_and_targets_equal_diffusers(
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    clean, noise, timesteps = batch
    reference = DDPMScheduler(**CONFIG)
    for prediction in ("epsilon", "v_prediction"):
        schedule = process(prediction_type=prediction)
        torch.testing.assert_close(
            schedule.add_noise(clean, noise, timesteps),
            reference.add_noise(clean, noise, timesteps), rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        expected = (
            noise if prediction == "epsilon" else reference.get_velocity(clean, noise, timesteps)
        )
        target = schedule.training_target(clean, noise, timesteps)
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)


def test_snr_equals_diffusers() -> None:
    expected = compute_snr(DDPMScheduler(**CONFIG), ALL)
    torch.testing.assert_close(process().snr(ALL), expected, rtol=1e-3, atol=1e-7)


@given(gamma=st.floats(0.1, 20.0))
def test_min_snr_weights_equal_their_formula(gamma: float) -> None:
    schedule = process()
    snr = schedule.alphas_cumprod.double() / (1 - schedule.alphas_cumprod.double())
    capped = torch.where(snr < gamma, snr, gamma)
    for prediction, expected in (("epsilon", capped / snr), ("v_prediction", capped / (snr + 1))):
        weight = process(prediction_type=prediction).min_snr_weight(ALL, gamma)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-7)


def test_unsupported_schedule_is_named() -> None:
    with pytest.raises(
        ConfigError, match="beta_schedule 'squaredcos' is not supported; use scaled"
    ):
        compute_alphas_cumprod("squaredcos", 0.1, 0.2)
    with pytest.raises(ConfigError, match="prediction_type 'sample' is not supported"):
        process(prediction_type="sample")
