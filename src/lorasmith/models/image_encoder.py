"""The image encoder and the text encoder that share an embedding space.

The image encoder is the image half of CLIP pretraining, the default backbone of the VAE's
perceptual loss, and the similarity metric of evaluation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from lorasmith.core.errors import WeightsError
from lorasmith.core.files import write_text
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.load import load_text_encoder, load_tokenizer
from lorasmith.models.read_json import read_json
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.models.text.encode import tokenize
from lorasmith.models.vision.base import ImageEncoder
from lorasmith.models.vision.encoder_config import create_image_encoder

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

FOLDER = "image_tower"


class ClipModel(nn.Module):
    """Both encoders and the learned temperature of CLIP (arXiv:2103.00020)."""

    def __init__(self, text_encoder: "CLIPTextModel", image: ImageEncoder) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.image = image
        width = int(text_encoder.config.hidden_size)
        self.text_projection = nn.Linear(width, int(image.config["embedding"]), bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1.0 / 0.07).log())

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Return unit-length embeddings, float32 ``[B, embedding]``, of token ids ``[B, 77]``."""
        pooled = self.text_encoder(ids).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def scale(self) -> torch.Tensor:
        """Return the inverse temperature, a scalar; at most 100, as in CLIP."""
        return self.log_scale.clamp(max=4.6052).exp()

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return image embeddings, text embeddings (both ``[B, embedding]``) and the scale."""
        return self.image(images), self.embed_text(ids), self.scale()


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
    image = create_image_encoder(read_json(folder, f"{FOLDER}/config.json"), config_file)
    tensors = load_tensors(folder / FOLDER / "model.safetensors")
    return image, {k: v.float() for k, v in tensors.items()}


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
    "embed_images",
    "embed_texts",
    "load_clip",
    "load_image_encoder",
    "load_tokenizer",
    "save_clip",
]
