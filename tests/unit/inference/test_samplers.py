import pytest
import torch

from lorasmith.core.errors import ConfigError
from lorasmith.inference.samplers import SAMPLERS, make_scheduler

CPU = torch.device("cpu")
CONFIG = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
CLEAN = torch.linspace(-1.0, 1.0, 16).reshape(1, 1, 4, 4)


def walk(name: str, config: dict[str, object], steps: int) -> torch.Tensor:
    """Denoise with a perfect network, which always knows the clean picture."""
    scheduler = make_scheduler(name, config, steps, CPU)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(CLEAN.shape, generator=random) * scheduler.init_noise_sigma
    alphas = scheduler.alphas_cumprod
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        # Timesteps between two levels are interpolated by these samplers in sigma, not in alpha.
        sigmas = ((1 - alphas) / alphas) ** 0.5
        low = int(timestep)
        high = min(low + 1, len(alphas) - 1)
        sigma = sigmas[low] + (float(timestep) - low) * (sigmas[high] - sigmas[low])
        alpha = 1 / (sigma**2 + 1)
        noise = (seen - alpha**0.5 * CLEAN) / (1 - alpha) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * CLEAN
        output = noise if config["prediction_type"] == "epsilon" else velocity
        latents = scheduler.step(output, timestep, latents, generator=[random], return_dict=False)[
            0
        ]
    return latents


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_network_leads_to_the_clean_picture(name: str, prediction: str) -> None:
    end = walk(name, CONFIG | {"prediction_type": prediction}, 20)
    # ddim and ddpm end at the first noise level (sigma 0.03), the others at none.
    assert (end - CLEAN).abs().max() < (0.12 if name in ("ddim", "ddpm") else 0.01)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
def test_every_number_of_steps_gives_that_many_levels(name: str, steps: int) -> None:
    timesteps = make_scheduler(name, CONFIG, steps, CPU).timesteps
    assert len(timesteps) == steps
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_timesteps_are_those_that_users_know() -> None:
    assert make_scheduler("ddim", CONFIG, 20, CPU).timesteps[[0, -1]].tolist() == [951, 1]
    assert make_scheduler("euler-a", CONFIG, 20, CPU).timesteps[[0, -1]].tolist() == [999, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_starts_at_pure_noise(name: str) -> None:
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = make_scheduler(name, config, 10, CPU)
    assert scheduler.timesteps[0] == 999
    assert scheduler.config.rescale_betas_zero_snr


def test_what_the_model_does_not_say_is_not_invented() -> None:
    scheduler = make_scheduler("ddim", {}, 10, CPU)
    assert scheduler.config.beta_schedule == "linear"
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        ("eulera", CONFIG, 5, "did you mean euler-a, euler"),
        ("plms", CONFIG, 5, "use one of ddim, ddpm"),
        ("Euler_A", CONFIG, 5, "did you mean euler-a"),
        ("ddim", CONFIG | {"prediction_type": "sample"}, 5, "prediction_type"),
        ("ddim", CONFIG, 0, "^steps: "),
        ("ddim", CONFIG | {"num_train_timesteps": 100}, 101, "1 to 100"),
    ],
)
def test_bad_requests_are_named(name: str, config: dict, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(name, config, steps, CPU)
