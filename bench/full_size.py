"""Models of published sizes with random weights: speed does not depend on values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lorasmith.adapters.targets import resolve
from lorasmith.adapters.trainable import Trainable, inject_targets
from lorasmith.config.run import LoraSettings, TrainSettings
from lorasmith.core.device import generator
from lorasmith.core.draws import Draws
from lorasmith.loops.device_clock import DeviceClock
from lorasmith.loops.optimizers import RateGroup, build_optimizer
from lorasmith.training.batch import Batch
from lorasmith.training.gating import Lane
from lorasmith.training.losses import Noise, draw_noise, process_of
from lorasmith.training.step import Denoiser, Figures, Objective, TrainStep

SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon", "num_train_timesteps": 1000, "clip_sample": False,
    "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_MINIATURE: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8},
    "sdxl": {
        "block_out_channels": (32, 64, 64), "norm_num_groups": 8, "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 1),
    },
}  # fmt: skip
TFLOP = {"sd15": 0.803, "sdxl": 6.761}
"""Of one forward pass for one picture of the model's own size, in 10^12 operations."""
SIDE = {"sd15": 512, "sdxl": 1024}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_L |= {"num_attention_heads": 12, "projection_dim": 768}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_CLIP_G |= {"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}


def make_unet(name: str, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> Any:
    """Return a U-Net with random weights, frozen; a very narrow one with ``tiny``."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet = UNet2DConditionModel(**UNETS[name] | (_MINIATURE[name] if tiny else {}))
    finally:
        torch.set_default_dtype(before)
    return unet.requires_grad_(False).eval()


class Inputs:
    """One batch of a model's own size, made up, on the device."""

    def __init__(self, name: str, unet: Any, batch: int, seed: int = 1, side: int = 0) -> None:
        device, dtype = unet.device, unet.dtype
        draws = torch.Generator(device).manual_seed(seed)
        side = side or unet.config.sample_size
        width = unet.config.cross_attention_dim
        self.clean = torch.randn(batch, 4, side, side, generator=draws, device=device)
        self.context = torch.randn(batch, 77, width, generator=draws, device=device).to(dtype)
        self.pooled = self.time_ids = None
        if name == "sdxl":
            self.pooled = torch.randn(batch, 1280, generator=draws, device=device).to(dtype)
            ids = [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]
            self.time_ids = torch.tensor([ids] * batch, device=device)


class MadeUp:
    """What `lorasmith.training.together.Together` needs of a run, on made-up pictures."""

    main = True

    def __init__(
        self, unet: Any, trainable: Trainable, inputs: Inputs, lane: Lane, **train: Any
    ) -> None:
        self.device = unet.device
        self.clock = DeviceClock(self.device)
        batch = len(inputs.clean)
        settings = TrainSettings(
            learning_rate=1e-4, text_learning_rate=1e-4, batch_size=batch, precision="bf16", **train
        )
        self.run = SimpleNamespace(train=settings, lora=LoraSettings())
        self.model = SimpleNamespace(unet=unet)
        self.trainable = trainable
        self._inputs, self._done = inputs, 0
        bucket = SimpleNamespace(area=1)
        order = SimpleNamespace(steps_per_epoch=1, batch=lambda _: torch.arange(batch))
        self.data = SimpleNamespace(
            order=order, placements=[SimpleNamespace(bucket=bucket)] * batch
        )
        groups = [
            RateGroup(one.part, one.parameters, one.learning_rate) for one in trainable.groups()
        ]
        optimizer, _ = build_optimizer(settings, groups)
        process = process_of(SCHEDULER, settings.loss, self.device)
        denoiser = Denoiser(SimpleNamespace(unet=unet))  # type: ignore[arg-type]
        objective = Objective(denoiser, process, settings.loss, lane)
        self._objective = objective
        self.step_once = TrainStep(objective, trainable.parameters(), optimizer, settings.clip)

    def prepare(self) -> torch.Tensor:
        """Return the numbers of the next step's pictures."""
        return torch.arange(len(self._inputs.clean))

    def parts(self, numbers: torch.Tensor) -> Any:
        """Yield the step's only part."""
        own, count = self._inputs, len(numbers)
        weight = torch.ones(count, device=self.device)
        batch = Batch(own.clean, weight, numbers, own.context, own.pooled, own.time_ids)
        draws = Draws(generator(0, 1, self._done, device=self.device), count, 0, count)
        noise: Noise = draw_noise(self._objective.process, self.run.train.loss, batch, draws)
        yield batch, noise

    def taken(self, figures: Figures) -> Figures:
        """Count a step."""
        self._done += 1
        return figures


def adapters(name: str, unet: Any, rank: int, seed: int = 0) -> Trainable:
    """Put adapters on all linear layers of a U-Net's transformers."""
    networks = SimpleNamespace(folder=Path(name), unet=unet, **_towers(name))
    lora = LoraSettings(rank=rank, targets="all-linear")
    rates = TrainSettings(learning_rate=1e-4, text_learning_rate=1e-4)
    return inject_targets(resolve(networks, lora, rates), lora, seed)


def _towers(name: str) -> dict[str, Any]:
    """Return the text encoders' shapes, by which a family is told from another."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        second = CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP_G)) if name == "sdxl" else None
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**_CLIP_L)),
            "text_encoder_2": second,
        }


def write_model(name: str, folder: Path, device: torch.device, tiny: bool = False) -> Path:
    """Write a whole model in diffusers' layout, in bfloat16, unless it is there already."""
    import json

    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from lorasmith.models.tokenizer import END, clip_tokenizer

    if (folder / "model_index.json").is_file():
        return folder
    levels = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    kinds |= {"up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=levels, layers_per_block=2, latent_channels=4,
            sample_size=SIDE[name], norm_num_groups=8 if tiny else 32,
            scaling_factor=0.13025 if name == "sdxl" else 0.18215, **kinds,
        )  # fmt: skip
        parts: dict[str, Any] = {
            "vae": vae,
            "text_encoder": CLIPTextModel(CLIPTextConfig(**_CLIP_L)),
        }
        if name == "sdxl":
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP_G))
    parts["unet"] = make_unet(name, device, torch.bfloat16, tiny)
    for part, network in parts.items():
        network.to(torch.bfloat16).save_pretrained(folder / part)
    for part in ("tokenizer", "tokenizer_2") if name == "sdxl" else ("tokenizer",):
        pad = "!" if part == "tokenizer_2" else END
        clip_tokenizer(49408, pad).save_pretrained(folder / part)
    (folder / "scheduler").mkdir(exist_ok=True)
    config = {"_class_name": "DDIMScheduler", **SCHEDULER}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    kind = "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline"
    classes = {part: [type(one).__module__.split(".")[0], type(one).__name__]
               for part, one in parts.items()}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **classes}))
    return folder
