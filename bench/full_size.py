"""Models of published sizes with random weights: speed does not depend on their values."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.loops.gpu_timer import GpuTimer
from lorasmith.loops.optimization.optimizers import ParamGroup, create_optimizer
from lorasmith.models.families.family import ModelVariant
from lorasmith.models.files.configs import (
    CLASSES,
    DIFFUSERS_PARTS,
    TOKENIZERS,
    VOCABULARY,
    component_config,
    model_index,
    pad_token,
)
from lorasmith.models.text.tokenizer import create_clip_tokenizer
from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise, build_noise_process, sample_noise
from lorasmith.training.step.denoiser import Denoiser
from lorasmith.training.step.gating import GateRouting
from lorasmith.training.step.train_step import DiffusionLoss, StepMetrics, TrainStep

VARIANTS = {
    "sd15": ModelVariant("sd1", prediction_type="epsilon"),
    "sdxl": ModelVariant("sdxl", prediction_type="epsilon"),
}
_MINIATURE: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8},
    "sdxl": {
        "block_out_channels": (32, 64, 64), "norm_num_groups": 8, "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 1),
    },
}  # fmt: skip
_NARROW_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 8}
TFLOP = {"sd15": 0.803, "sdxl": 6.761}
"""Of one forward pass for one image of the model's native size, in 10^12 operations."""
SIDE = {name: variant.native_size for name, variant in VARIANTS.items()}


def scheduler(name: str) -> dict[str, Any]:
    """Return a model's noise schedule."""
    return component_config(VARIANTS[name], "scheduler")


def _network(name: str, part: str, tiny: bool = False) -> Any:
    """Return one of a model's networks with random weights, on torch's default device."""
    import diffusers
    import transformers

    config = component_config(VARIANTS[name], part)
    if part not in DIFFUSERS_PARTS:
        return getattr(transformers, CLASSES[part])(transformers.CLIPTextConfig(**config))
    narrow = _MINIATURE[name] if part == "unet" else _NARROW_VAE
    return getattr(diffusers, CLASSES[part]).from_config(config | (narrow if tiny else {}))


def make_unet(name: str, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> Any:
    """Return a U-Net with random weights, frozen; a very narrow one with ``tiny``."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = _network(name, "unet", tiny)
    finally:
        torch.set_default_dtype(before)
    return unet.requires_grad_(False).eval()


class Inputs:
    """A random batch of the model's native size, on the device."""

    def __init__(self, name: str, unet: Any, batch: int, seed: int = 1, side: int = 0) -> None:
        device, dtype = unet.device, unet.dtype
        generator = torch.Generator(device).manual_seed(seed)
        side = side or unet.config.sample_size
        width = unet.config.cross_attention_dim
        self.clean = torch.randn(batch, 4, side, side, generator=generator, device=device)
        self.context = torch.randn(batch, 77, width, generator=generator, device=device).to(dtype)
        self.pooled = self.time_ids = None
        if name == "sdxl":
            self.pooled = torch.randn(batch, 1280, generator=generator, device=device).to(dtype)
            ids = [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]
            self.time_ids = torch.tensor([ids] * batch, device=device)


class SyntheticRun:
    """What `lorasmith.training.run_step.JointTrainStep` needs of a run, on random images."""

    is_main = True

    def __init__(
        self,
        name: str,
        unet: Any,
        trainable: TrainableLora,
        inputs: Inputs,
        lane: GateRouting,
        **train: Any,
    ) -> None:
        self.device = unet.device
        self.gpu_timer = GpuTimer(self.device)
        batch = len(inputs.clean)
        settings = TrainerConfig(
            learning_rate=1e-4,
            text_encoder_lr=1e-4,
            batch_size=batch,
            mixed_precision="bf16",
            **train,
        )
        self.train, self.dropout = settings, 0.0
        self.model = SimpleNamespace(unet=unet)
        self.trainable = trainable
        self._inputs, self._done = inputs, 0
        bucket = SimpleNamespace(area=1)
        sampler = SimpleNamespace(steps_per_epoch=1, get_batch=lambda _: torch.arange(batch))
        self.dataset = SimpleNamespace(
            batch_sampler=sampler, assignments=[SimpleNamespace(bucket=bucket)] * batch
        )
        groups = [
            ParamGroup(group.part, group.parameters, group.learning_rate)
            for group in trainable.parameter_groups()
        ]
        optimizer, _ = create_optimizer(settings.optimizer, groups, settings.weight_decay)
        process = build_noise_process(scheduler(name), settings.loss, self.device)
        denoiser = Denoiser(SimpleNamespace(unet=unet))  # type: ignore[arg-type]
        objective = DiffusionLoss(denoiser, process, settings.loss, lane)
        self.loss = objective
        self.train_step = TrainStep(
            objective, trainable.parameters(), optimizer, settings.max_grad_norm
        )

    def begin_step(self) -> torch.Tensor:
        """Return the indices of the next step's images."""
        return torch.arange(len(self._inputs.clean))

    def microbatches(self, numbers: torch.Tensor) -> Any:
        """Yield the step's only microbatch."""
        inputs, count = self._inputs, len(numbers)
        weight = torch.ones(count, device=self.device)
        batch = Batch(inputs.clean, weight, numbers, inputs.context, inputs.pooled, inputs.time_ids)
        rng = BatchRng(make_generator(0, 1, self._done, device=self.device), count, 0, count)
        noise: Noise = sample_noise(self.loss.process, self.train.loss, batch, rng)
        yield batch, noise

    def on_step_end(self, figures: StepMetrics) -> StepMetrics:
        """Count a step."""
        self._done += 1
        return figures


def adapters(name: str, unet: Any, rank: int, seed: int = 0) -> TrainableLora:
    """Put adapters on all linear layers of a U-Net's transformers."""
    networks = SimpleNamespace(folder=Path(name), unet=unet, **_towers(name))
    lora = LoraConfig(rank=rank, targets="all-linear")
    rates = TrainerConfig(learning_rate=1e-4, text_encoder_lr=1e-4)
    return inject_trainable(resolve_targets(networks, lora, rates), lora, seed)


def _towers(name: str) -> dict[str, Any]:
    """Return the text encoders' shapes, which identify the family."""
    with torch.device("meta"):
        second = _network(name, "text_encoder_2") if name == "sdxl" else None
        return {"text_encoder": _network(name, "text_encoder"), "text_encoder_2": second}


def write_model(name: str, folder: Path, device: torch.device, tiny: bool = False) -> Path:
    """Write a full model in diffusers' layout, in bfloat16, unless it exists."""
    index = folder / "model_index.json"
    if index.is_file():
        return folder
    variant = VARIANTS[name]
    for part in ("unet", "vae", *variant.family.text_encoders):
        torch.manual_seed(0)
        with torch.device(device):
            _network(name, part, tiny).to(torch.bfloat16).save_pretrained(folder / part)
    for part, tower in variant.family.text_encoders.items():
        tokenizer = create_clip_tokenizer(VOCABULARY, pad_token(tower))
        tokenizer.save_pretrained(folder / TOKENIZERS[part])
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler(name)))
    index.write_text(json.dumps(model_index(variant)))
    return folder
