import pytest
import torch

from lorasmith.core.errors import ConfigError
from lorasmith.inference.denoise import ScheduledDenoiser, denoise, scheduler_order
from lorasmith.inference.samplers import make_scheduler, resolve_sampler, sampler_label
from lorasmith.models.families.family import PREDICTION_TYPES
from lorasmith.registries import SAMPLERS

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


def denoise_perfectly(name: str, config: dict[str, object], steps: int) -> torch.Tensor:
    """Denoise with a perfect network, which always knows the clean image."""
    scheduler = make_scheduler(name, config, steps, CPU)
    random = torch.Generator().manual_seed(0)
    alphas = scheduler.alphas_cumprod
    # Samplers interpolate timesteps between two levels in sigma, not in alpha.
    sigmas = ((1 - alphas) / alphas) ** 0.5

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        low = int(timestep)
        high = min(low + 1, len(alphas) - 1)
        sigma = sigmas[low] + (float(timestep) - low) * (sigmas[high] - sigmas[low])
        alpha = 1 / (sigma**2 + 1)
        noise = (latents - alpha**0.5 * CLEAN) / (1 - alpha) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * CLEAN
        predictions = {"epsilon": noise, "v_prediction": velocity, "sample": CLEAN}
        return predictions[str(config["prediction_type"])]

    return denoise(predict, scheduler, torch.randn(CLEAN.shape, generator=random), [random])


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_perfect_network_leads_to_the_clean_image(name: str, prediction: str) -> None:
    end = denoise_perfectly(name, CONFIG | {"prediction_type": prediction}, 20)
    # ddim and ddpm end at the first noise level (sigma 0.03), the others at none.
    assert (end - CLEAN).abs().max() < (0.12 if name in ("ddim", "ddpm") else 0.02)


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
def test_every_number_of_steps_is_possible(name: str, steps: int) -> None:
    scheduler = make_scheduler(name, CONFIG, steps, CPU)
    assert len(scheduler.timesteps) == (2 * steps - 1 if name == "heun" else steps)
    assert scheduler.timesteps.min() >= 0
    assert scheduler.timesteps.max() <= 999


@pytest.mark.parametrize("name", ["ddim", "euler_a", "heun", "unipc"])
@pytest.mark.parametrize("first_step", [0, 3])
def test_steps_are_counted_whatever_the_order(name: str, first_step: int) -> None:
    scheduler = make_scheduler(name, CONFIG, 10, CPU)
    starts, steps = [], []
    denoiser = ScheduledDenoiser(
        lambda start: starts.append(start) or (lambda latents, _: latents),
        (1, 2, 5),
        scheduler_order(scheduler),
    )

    def on_step_end(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        steps.append(step)
        return latents

    generators = [torch.Generator().manual_seed(0)]
    image = None if first_step == 0 else CLEAN
    denoise(denoiser, scheduler, CLEAN, generators, on_step_end, image, first_step)
    assert starts == [1, 2, 5]
    assert steps == list(range(10 - first_step))


def test_timesteps_are_the_usual_ones() -> None:
    assert make_scheduler("ddim", CONFIG, 20, CPU).timesteps[[0, -1]].tolist() == [951, 1]
    assert make_scheduler("euler_a", CONFIG, 20, CPU).timesteps[[0, -1]].tolist() == [999, 0]


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names() if name != "heun"])
def test_zero_terminal_snr_starts_at_pure_noise(name: str) -> None:
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = make_scheduler(name, config, 10, CPU)
    assert scheduler.timesteps[0] >= 998  # Karras' sigmas are rounded to timesteps
    assert scheduler.alphas_cumprod[-1] <= 2**-24


def test_missing_settings_of_the_model_are_diffusers_defaults() -> None:
    scheduler = make_scheduler("ddim", {}, 10, CPU)
    assert scheduler.config.beta_schedule == "linear"
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++ 2m karras", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("Euler", "euler"),
        ("Euler a", "euler_a"),
        ("euler-a", "euler_a"),
        ("Heun", "heun"),
        ("UniPC", "unipc"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("k_euler_a", "euler_a"),
        ("euler_ancestral", "euler_a"),
    ],
)
def test_names_of_a1111_and_diffusers_are_accepted(name: str, expected: str) -> None:
    assert resolve_sampler(name) == expected


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_label_is_a_name_of_the_sampler(name: str) -> None:
    assert resolve_sampler(sampler_label(name)) == name


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        ("eulera", CONFIG, 5, "did you mean 'euler"),
        ("PNDM", CONFIG, 5, "no sampler 'PNDM'.*choose from ddim, ddpm, dpmpp_2m"),
        ("DPM++ SDE", CONFIG, 5, r"no sampler 'DPM\+\+ SDE'.*choose from ddim"),
        ("ddim", CONFIG | {"prediction_type": "flow"}, 5, "prediction_type"),
        ("ddim", CONFIG, 0, "^num_inference_steps: "),
        ("ddim", CONFIG | {"num_train_timesteps": 100}, 101, "1 to 100"),
        (
            "heun",
            CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            5,
            "use the sampler euler",
        ),
        (
            "euler",
            CONFIG | {"beta_schedule": "linear", "beta_end": 0.5},
            5,
            "holds no signal at the last noise level",
        ),
        ("heun", CONFIG | {"beta_schedule": "squaredcos_cap_v2"}, 5, "use the sampler euler"),
        ("ddim", CONFIG | {"rescale_betas_zero_snr": True}, 5, "says nothing about the image"),
        ("euler", CONFIG | {"rescale_betas_zero_snr": True}, 5, "would be black"),
    ],
)
def test_impossible_scheduler_is_refused(name: str, config: dict, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(name, config, steps, CPU)


@pytest.mark.parametrize("name", ["DPM2", "DPM++ SDE Karras", "dpmpp_2s_ancestral"])
def test_sampler_that_only_sounds_alike_is_not_suggested(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no sampler") as caught:
        resolve_sampler(name)
    assert "did you mean" not in str(caught.value)
