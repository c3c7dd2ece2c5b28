"""One step of training gives the loss and gradients of a plain program with diffusers and peft.

The other side of each comparison is written as one would after reading the examples of diffusers:
images and captions are read and encoded here, with the same random numbers in the same order.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from lorasmith.config.train_config import TrainConfig
from lorasmith.core.device import make_generator
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer
from lorasmith.training.state import TrainerState

pytest.importorskip("peft", reason="the other side of the comparison is written with it")

Tiny = Callable[[str], Path]
SIDE, COUNT, SEED = 64, 3, 11
CAPTIONS = [f"a thing number {index}, inkmono style" for index in range(COUNT)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images that are wider than their bucket, with masks."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, caption in enumerate(CAPTIONS):
        random = np.random.default_rng(index).integers(0, 256, (SIDE, 80, 3), dtype=np.uint8)
        Image.fromarray(random).save(folder / f"{index}.png")
        mask = Image.new("L", (80, SIDE), 0)
        ImageDraw.Draw(mask).ellipse((5 + 9 * index, 7, 60, 50), fill=255)
        mask.save(folder / f"{index}.mask.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


# --- lorasmith ------------------------------------------------------------------------------


@contextmanager
def our_session(
    folder: Path, pictures: Path, out: Path, loss: dict[str, Any]
) -> Iterator[TrainerState]:
    run = TrainConfig.model_validate(
        {
            "data": {"path": pictures, "tag": "inkmono", "cache": False},
            "output": {"name": str(out)},
            "model": {"path": folder},
            "lora": {"rank": 3, "alpha": 1.5, "targets": "all-linear+text-encoder"},
            "train": {
                "device": "cpu", "batch_size": COUNT, "max_grad_norm": 0.0, "seed": SEED,
                "loss": loss, "learning_rate": 1e-3,
            },
        }
    )  # fmt: skip
    with open_trainer(run, None) as session:
        random = make_generator(5)
        for adapter in session.trainable.adapters.values():  # otherwise half the gradients are 0
            adapter.up.data.copy_(0.1 * torch.randn(adapter.up.shape, generator=random))
        yield session


# --- diffusers and peft ---------------------------------------------------------------------


@dataclass
class ReferenceTraining:
    """A model's parts as diffusers and transformers load them, with peft's adapters."""

    folder: Path
    family: str

    def __post_init__(self) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        def part(kind: Any, name: str) -> Any:
            if not (self.folder / name).is_dir():
                return None
            return kind.from_pretrained(self.folder, subfolder=name)

        self.unet = part(UNet2DConditionModel, "unet")
        self.vae = part(AutoencoderKL, "vae")
        self.scheduler = DDPMScheduler.from_pretrained(self.folder, subfolder="scheduler")
        self.encoders = [
            part(CLIPTextModel, "text_encoder"),
            part(CLIPTextModelWithProjection, "text_encoder_2"),
        ]
        self.tokenizers = [part(CLIPTokenizer, name) for name in ("tokenizer", "tokenizer_2")]
        for network in (self.unet, self.vae, *filter(None, self.encoders)):
            network.requires_grad_(False)

    def add_lora(self, session: TrainerState) -> dict[str, Any]:
        """Give every layer that ours has the same factors; return peft's layers by our names."""
        from peft import LoraConfig

        network = {
            "unet": self.unet, "text_encoder": self.encoders[0],
            "text_encoder_2": self.encoders[1],
        }  # fmt: skip
        targets = session.trainable.targets
        for part, module in network.items():
            paths = [target.ref.path for target in targets if target.ref.part == part]
            if module is None:
                assert not paths
                continue
            module.add_adapter(LoraConfig(r=3, lora_alpha=1.5, target_modules=paths))
        layers = {}
        for target in targets:
            layer = network[target.ref.part].get_submodule(target.ref.path)
            adapter = session.trainable.adapters[target.ref.name]
            layer.lora_A["default"].weight.data.copy_(adapter.down)
            layer.lora_B["default"].weight.data.copy_(adapter.up)
            layers[target.ref.name] = layer
        return layers

    def read(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode captions as the pipeline of the family does."""
        ids = [
            None if tokenizer is None else tokenizer(
                texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in self.tokenizers
        ]  # fmt: skip
        if "sdxl" not in self.family:
            return self.encoders[0](ids[0])[0], None
        result, pooled = [], None
        for encoder, encoder_ids in zip(self.encoders, ids, strict=True):
            if encoder is None:
                continue
            output = encoder(encoder_ids, output_hidden_states=True)
            pooled = output[0]
            result.append(output.hidden_states[-2])
        return torch.cat(result, dim=-1), pooled

    def loss(self, folder: Path, numbers: list[int], min_snr: float | None) -> torch.Tensor:
        """The loss of the first step; random numbers are drawn as ours does."""
        random = torch.Generator().manual_seed(make_generator(SEED, 1, 0).initial_seed())
        pixels = torch.stack([cropped(folder / f"{n}.png", "RGB") for n in numbers]) * 2 - 1
        latents = self.sample(pixels, random)
        inputs = []
        if self.family.endswith("inpainting"):
            masks = torch.stack([cropped(folder / f"{n}.mask.png", "L") for n in numbers])
            masks = (masks >= 0.5).float()
            masked = self.sample(pixels * (masks < 0.5), random)
            inputs = [F.interpolate(masks, size=latents.shape[-2:]), masked]
        steps = 200 if self.family == "sdxl-refiner" else 1000
        timesteps = torch.randint(steps, (len(numbers),), generator=random)
        noise = torch.randn(latents.shape, generator=random)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        context, pooled = self.read([CAPTIONS[n] for n in numbers])
        extra = None
        if pooled is not None:
            end = [6.0] if self.family == "sdxl-refiner" else [SIDE, SIDE]
            sizes = torch.tensor([[SIDE, 80, 0, (80 - SIDE) // 2, *end]] * len(numbers))
            extra = {"text_embeds": pooled, "time_ids": sizes}
        predicted = self.unet(
            torch.cat([noisy, *inputs], dim=1), timesteps, context, added_cond_kwargs=extra
        ).sample
        target = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        elif self.scheduler.config.prediction_type == "sample":
            target = latents
        if min_snr is None:
            return F.mse_loss(predicted, target)
        return self.weighted(predicted, target, timesteps, min_snr)

    def weighted(
        self, predicted: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor, gamma: float
    ) -> torch.Tensor:
        from diffusers.training_utils import compute_snr

        snr = compute_snr(self.scheduler, timesteps)
        weight = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        # Hang et al. 2023, section 3.4
        divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        losses = F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
        return (losses * weight / divisors[self.scheduler.config.prediction_type]).mean()

    def sample(self, pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        latents = self.vae.encode(pixels).latent_dist.sample(random)
        return latents * self.vae.config.scaling_factor


def cropped(path: Path, mode: str) -> torch.Tensor:
    """Read the central square: float 0..1 ``[C, 64, 64]``."""
    left = (80 - SIDE) // 2
    picture = Image.open(path).convert(mode).crop((left, 0, left + SIDE, SIDE))
    array = torch.from_numpy(np.asarray(picture).copy()).float() / 255.0
    return array.unsqueeze(0) if mode == "L" else array.permute(2, 0, 1)


# --- comparison -----------------------------------------------------------------------------

FAMILIES = (
    "sd1", "sd2", "sdxl", "sdxl-refiner", "sd1-inpainting", "sd2-inpainting", "sdxl-inpainting",
)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "min_snr"), [*((grad, None) for grad in FAMILIES), ("sd1", 5.0), ("sd2", 5.0)]
)
def test_loss_and_gradients_equal_the_reference(
    tiny_of: Tiny, pictures: Path, tmp_path: Path, family: str, min_snr: float | None
) -> None:
    loss = {"min_snr_gamma": min_snr or 0.0, "masked": False}
    theirs = ReferenceTraining(tiny_of(family), family)
    with our_session(tiny_of(family), pictures, tmp_path / "out", loss) as session:
        layers = theirs.add_lora(session)
        numbers = session.dataset.batch_sampler.get_batch(0).tolist()
        expected = theirs.loss(pictures, numbers, min_snr)
        expected.backward()
        metrics = JointTrainStep([session]).step()[0]
        assert metrics.images == COUNT
        assert float(metrics.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
        our_grads, reference_grads = [], []
        for name, adapter in session.trainable.adapters.items():
            factors = layers[name].lora_A["default"], layers[name].lora_B["default"]
            for factor, other in zip((adapter.down, adapter.up), factors, strict=True):
                our_grads.append(gradient_of(factor))
                reference_grads.append(gradient_of(other.weight))
    reached = sum(bool(grad.any()) for grad in reference_grads)
    assert reached > 0.9 * len(reference_grads)
    ours, expected = torch.cat(our_grads), torch.cat(reference_grads)
    assert float(expected.norm()) > 1e-2
    assert float((ours - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_loss_with_noise_of_another_kind_equals_the_reference(
    tiny_of: Tiny, pictures: Path, tmp_path: Path, prediction: str, min_snr: float | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_of("sd1"), folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {
        "prediction_type": prediction, "beta_schedule": "squaredcos_cap_v2",
        "rescale_betas_zero_snr": True,
    }  # fmt: skip
    path.write_text(json.dumps(config), encoding="utf-8")
    theirs = ReferenceTraining(folder, "sd1")
    loss = {"min_snr_gamma": min_snr or 0.0, "masked": False}
    with our_session(folder, pictures, tmp_path / "out", loss) as session:
        theirs.add_lora(session)
        numbers = session.dataset.batch_sampler.get_batch(0).tolist()
        expected = theirs.loss(pictures, numbers, min_snr)
        metrics = JointTrainStep([session]).step()[0]
        assert float(metrics.loss) == pytest.approx(float(expected.detach()), rel=1e-4)


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zero where the output does not depend on the parameter."""
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
