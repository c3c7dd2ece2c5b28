"""One ideal network in the words of epsilon, v and x0: all samplers draw the same with each."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from lorasmith.inference.denoise import denoise
from lorasmith.inference.samplers import make_scheduler
from lorasmith.models.families.family import PREDICTION_TYPES
from lorasmith.models.noise_schedule import NoiseSchedule
from lorasmith.registries import SAMPLERS

CPU = torch.device("cpu")
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
ZERO_SNR = CONFIG | {"rescale_betas_zero_snr": True}
CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
TO_PURE_NOISE = [name for name in SAMPLERS.names() if name != "heun"]
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def guess_image(noisy: torch.Tensor) -> torch.Tensor:
    """The network: some image, which depends on its input and is the same in all words."""
    return 0.5 * torch.tanh(noisy) + torch.linspace(-0.4, 0.4, 4).view(1, 4, 1, 1)


def predict_in_words(prediction: str, power_at: Callable[[float], float]) -> Any:
    """Return the network in the words of a prediction type, computed in float64.

    Args:
        prediction: the type.
        power_at: the signal power of a timestep.
    """

    def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        power = power_at(float(timestep))
        signal, sigma = power**0.5, (1 - power) ** 0.5
        noisy, clean = noisy.double(), guess_image(noisy).double()
        noise = (noisy - signal * clean) / sigma
        words = {
            "epsilon": noise, "v_prediction": signal * noise - sigma * clean, "sample": clean,
        }  # fmt: skip
        return words[prediction].float()

    return predict


def exact_power(scheduler: Any) -> Callable[[float], float]:
    """Return the signal power that a scheduler itself goes by at its next call."""

    def power_at(timestep: float) -> float:
        if not hasattr(scheduler, "sigmas"):
            return float(scheduler.alphas_cumprod[int(timestep)])
        index = scheduler.step_index or 0
        return 1 / (float(scheduler.sigmas[index]) ** 2 + 1)

    return power_at


def draw(scheduler: Any, prediction: str, steps: int | None = None) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    network = predict_in_words(prediction, exact_power(scheduler))
    if steps is not None:
        scheduler.timesteps = scheduler.timesteps[:steps]
    return denoise(network, scheduler, NOISE, generators)


@pytest.mark.parametrize(
    ("name", "betas"),
    [(name, "scaled_linear") for name in SAMPLERS.names()]
    + [(name, "squaredcos_cap_v2") for name in TO_PURE_NOISE],
)
def test_prediction_types_of_one_network_give_the_same_latents(name: str, betas: str) -> None:
    config = CONFIG | {"beta_schedule": betas}
    for steps in (1, None):  # the first step alone, and all of them
        latents = {
            prediction: draw(
                make_scheduler(name, config | {"prediction_type": prediction}, 8, CPU),
                prediction,
                steps,
            )
            for prediction in PREDICTION_TYPES
        }
        scale = float(latents["sample"].abs().max())
        for prediction in ("epsilon", "v_prediction"):
            difference = (latents[prediction] - latents["sample"]).abs().max()
            assert float(difference) < 2e-3 * max(scale, 1.0), (prediction, steps)


@pytest.mark.parametrize("name", TO_PURE_NOISE)
def test_zero_terminal_snr_draws_alike_from_v_and_x0(name: str) -> None:
    latents = [
        draw(make_scheduler(name, ZERO_SNR | {"prediction_type": kind}, 8, CPU), kind)
        for kind in ("v_prediction", "sample")
    ]
    assert bool(torch.stack(latents).isfinite().all())
    assert float((latents[0] - latents[1]).abs().max()) < 2e-3
    assert float(latents[0].abs().max()) < 2.0  # an image of the network, not noise


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_steps_are_those_of_the_schedulers_of_diffusers(name: str, prediction: str) -> None:
    if (name, prediction) == ("euler_a", "sample"):
        pytest.skip("diffusers has no ancestral Euler for x0; compared with our v above")
    config = CONFIG | {"prediction_type": prediction}
    ours = make_scheduler(name, config, 8, CPU)
    more = {"clip_sample": False, "steps_offset": 1} if name in ("ddim", "ddpm") else {}
    more |= {"set_alpha_to_one": False} if name == "ddim" else {}
    spacing = "leading" if name in ("ddim", "ddpm") else "linspace"
    theirs = getattr(diffusers, CLASSES[name])(**config, **more, timestep_spacing=spacing)
    theirs.set_timesteps(8)
    assert torch.equal(draw(ours, prediction), draw(theirs, prediction))


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "heun"])
def test_samplers_have_the_noise_levels_of_training(name: str, betas: str, zero_snr: bool) -> None:
    config = CONFIG | {
        "beta_schedule": betas, "num_train_timesteps": 400,
        "rescale_betas_zero_snr": zero_snr, "prediction_type": "sample",
    }  # fmt: skip
    sampled = make_scheduler(name, config, 8, CPU).alphas_cumprod
    trained = NoiseSchedule.from_scheduler(config, CPU).alphas_cumprod
    torch.testing.assert_close(sampled, trained, rtol=2e-3, atol=1e-6)
