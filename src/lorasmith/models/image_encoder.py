"""The image encoder: a small residual CNN that shares an embedding space with the text encoder.

It is the image half of CLIP pretraining, the backbone of the VAE's perceptual loss, and the
similarity metric of evaluation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.config.pretrain import IMAGE_ENCODER_NORM_GROUPS
from lorasmith.core.errors import WeightsError
from lorasmith.core.files import write_text
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.load import load_text_encoder, load_tokenizer
from lorasmith.models.read_json import read_json
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.models.text.encode import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

FOLDER = "image_tower"
_MAX_STAGES, _MAX_WIDTH, _MAX_DEPTH = 8, 2048, 16
"""Bounds of a config that is read: stages, channels of a stage, and its blocks."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation before each, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(IMAGE_ENCODER_NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(IMAGE_ENCODER_NORM_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))  # type: ignore[no-any-return]


class ImageEncoder(nn.Module):
    """Maps images to embeddings; stage k works at 1 / 2^(k+1) of the image's side."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.config = {"channels": list(channels), "blocks": list(blocks), "embedding": embedding}
        stages, before = [], 3
        for width, depth in zip(channels, blocks, strict=True):
            down = nn.Conv2d(before, width, 3, stride=2, padding=1)
            stages.append(nn.Sequential(down, *(ResidualBlock(width) for _ in range(depth))))
            before = width
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(before)
        self.projection = nn.Linear(before, embedding, bias=False)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return each stage's output for images ``[B, 3, H, W]`` in -1..1."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit-length embeddings, float32 ``[B, embedding]``."""
        pooled = self.feature_maps(images)[-1].mean(dim=(2, 3))
        return F.normalize(self.projection(self.norm(pooled)).float(), dim=-1)


class ClipModel(nn.Module):
    """Both encoders and the learned temperature of CLIP (arXiv:2103.00020)."""

    def __init__(self, text_encoder: "CLIPTextModel", image: ImageEncoder) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.image = image
        width = int(text_encoder.config.hidden_size)
        self.text_projection = nn.Linear(width, int(image.config["embedding"]), bias=False)  # type: ignore[call-overload]
        self.log_scale = nn.Parameter(torch.tensor(1.0 / 0.07).log())

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return unit-length embeddings, float32 ``[B, embedding]``, of token ids ``[B, 77]``."""
        pooled = self.text_encoder(ids).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return image embeddings, text embeddings (both ``[B, embedding]``) and the scale."""
        scale = self.log_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
        return self.image(images), self.embed_text(ids), scale


def save_clip(pair: ClipModel, tokenizer: "CLIPTokenizer", folder: Path) -> None:
    """Write ``text_encoder/``, ``tokenizer/`` and ``image_tower/`` into a folder."""
    with suppress_logs():
        pair.text_encoder.save_pretrained(folder / "text_encoder")
        tokenizer.save_pretrained(folder / "tokenizer")
    tensors = {k: v for k, v in pair.state_dict().items() if not k.startswith("text_encoder.")}
    save_tensors(folder / FOLDER / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / FOLDER / "config.json", json.dumps(pair.image.config, indent=2) + "\n")


def load_clip(folder: Path | None = None) -> ClipModel:
    """Load both encoders in float32, frozen; the embedded ones by default.

    Raises:
        WeightsError: the image encoder is missing or does not fit its config.
    """
    folder = folder or EMBEDDED
    image, tensors = _load_folder(folder)
    pair = ClipModel(load_text_encoder(folder), image)
    try:
        missing, unexpected = pair.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{folder / FOLDER}: weights do not fit config.json") from error
    missing_here = [name for name in missing if not name.startswith("text_encoder.")]
    if missing_here or unexpected:
        raise WeightsError(
            f"{folder / FOLDER}: {len(missing_here)} tensors missing, {len(unexpected)} unexpected"
        )
    return pair.requires_grad_(False).eval()


def load_image_encoder(folder: Path | None = None) -> ImageEncoder:
    """Load the image encoder in float32, frozen; the embedded one by default."""
    folder = folder or EMBEDDED
    image, tensors = _load_folder(folder)
    weights = {k.removeprefix("image."): v for k, v in tensors.items() if k.startswith("image.")}
    try:
        image.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{folder / FOLDER}: weights do not fit config.json") from error
    return image.requires_grad_(False).eval()


def _load_folder(folder: Path) -> tuple[ImageEncoder, dict[str, torch.Tensor]]:
    config_file = folder / FOLDER / "config.json"
    if not config_file.is_file():
        raise WeightsError(f"{folder}: has no {FOLDER}; `lorasmith pretrain clip` makes one")
    config = read_json(folder, f"{FOLDER}/config.json")
    widths: Any = config.get("channels")
    depths: Any = config.get("blocks")
    if not (_is_sizes(widths, _MAX_WIDTH) and _is_sizes(depths, _MAX_DEPTH)):
        raise WeightsError(
            f"{config_file}: not an image encoder's config: channels are up to {_MAX_STAGES} "
            f"numbers from 1 to {_MAX_WIDTH}, blocks as many from 1 to {_MAX_DEPTH}"
        )
    if not _is_sizes([config.get("embedding")], _MAX_WIDTH) or len(widths) != len(depths):
        raise WeightsError(f"{config_file}: not an image encoder's config: embedding or blocks")
    try:
        image = ImageEncoder(widths, depths, config["embedding"])
    except ValueError as error:  # widths that the groups of the norms do not divide
        raise WeightsError(f"{config_file}: not an image encoder's config ({error})") from error
    tensors = load_tensors(folder / FOLDER / "model.safetensors")
    return image, {k: v.float() for k, v in tensors.items()}


def _is_sizes(values: Any, largest: int) -> bool:
    """Tell a short list of whole numbers from 1."""
    return (
        isinstance(values, list)
        and 1 <= len(values) <= _MAX_STAGES
        and all(type(value) is int and 1 <= value <= largest for value in values)
    )


@torch.no_grad()
def embed_texts(
    pair: ClipModel, tokenizer: "CLIPTokenizer", texts: Sequence[str], batch_size: int = 256
) -> torch.Tensor:
    """Return unit-length embeddings of texts, float32 ``[N, embedding]`` on the CPU."""
    device = pair.log_scale.device
    ids = tokenize(tokenizer, texts, warn=False)
    return torch.cat(
        [pair.embed_text(part.to(device)).cpu() for part in torch.split(ids, batch_size)]
    )


@torch.no_grad()
def embed_images(
    encoder: ImageEncoder, images: torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """Return unit-length embeddings of images ``[N, 3, H, W]`` in -1..1, on the CPU."""
    device = encoder.projection.weight.device
    return torch.cat([encoder(part.to(device)).cpu() for part in torch.split(images, batch_size)])


__all__ = [
    "ClipModel",
    "ImageEncoder",
    "embed_images",
    "embed_texts",
    "load_clip",
    "load_image_encoder",
    "load_tokenizer",
    "save_clip",
]
