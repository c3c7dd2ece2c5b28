"""Loading Stable Diffusion models from diffusers folders, single files and the local cache."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import WeightsError, did_you_mean
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES, reject_pickle
from lorasmith.models.family import INPAINTING_CHANNELS
from lorasmith.models.files.build import build_empty_network, canonical_state_dict, load_weights
from lorasmith.models.files.configs import unet_config
from lorasmith.models.files.hub import find_cached_model, is_model_id
from lorasmith.models.files.single_file import SingleFileSource
from lorasmith.models.files.source import (
    FolderSource,
    ModelSource,
    build_empty_part,
    load_folder_tokenizer,
    naming_part,
    read_json,
)
from lorasmith.models.files.stored_tensors import find_part_tensors
from lorasmith.models.prediction_type import measure_prediction_type
from lorasmith.models.suppress_logs import suppress_logs

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"
"""The small base model that ships with the package."""

__all__ = [
    "EMBEDDED",
    "Model",
    "load_model",
    "load_network",
    "load_text_encoder",
    "load_tokenizer",
    "open_source",
    "resolve_model_path",
    "suppress_logs",
]  # fmt: skip


@dataclass
class Model:
    """The components of a Stable Diffusion model."""

    folder: Path
    """The folder or the single file that it was read from."""
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel | None"
    """The text encoder, or the first of two. The SDXL refiner has only the second: None."""
    tokenizer: "CLIPTokenizer | None"
    """Its tokenizer, or None likewise."""
    scheduler_config: dict[str, Any]
    text_encoder_2: "CLIPTextModelWithProjection | None" = None
    """SDXL's second text encoder."""
    tokenizer_2: "CLIPTokenizer | None" = None
    """Its tokenizer."""

    @property
    def text_encoders(self) -> "list[CLIPTextModel | CLIPTextModelWithProjection]":
        """The text encoder, or both."""
        return [
            encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None
        ]

    @property
    def main_tokenizer(self) -> "CLIPTokenizer":
        """The tokenizer of the first text encoder. Two tokenizers differ in padding only."""
        tokenizer = self.tokenizer or self.tokenizer_2
        if tokenizer is None:
            raise WeightsError(f"model {self.folder}: has no tokenizer")
        return tokenizer

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net also reads a mask and the latents of the masked image."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along one side; 8 for published models."""
        return downscale_factor(len(self.vae.config.block_out_channels))

    @property
    def default_size(self) -> int:
        """The image size that the U-Net was trained at, in pixels."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Model":
        """Move the networks, frozen and in evaluation mode."""
        # diffusers warns about parts to be kept in float32 even where there are none.
        with suppress_logs():
            for part in (self.unet, *self.text_encoders):
                part.to(device=device, dtype=dtype).requires_grad_(False).eval()
            vae_dtype = _vae_dtype(self.vae, self.text_encoder_2 is not None, dtype)
            self.vae.to(device=device, dtype=vae_dtype).requires_grad_(False).eval()
        return self


def downscale_factor(levels: int) -> int:
    """Return the downscaling of a network: each level but the last halves the sides."""
    return int(2 ** (levels - 1))


def resolve_model_path(name: str | Path | None) -> Path:
    """Return a model's folder or single file; None means the embedded model.

    Args:
        name: a diffusers folder, a ``.safetensors`` file with a full model, or a Hugging Face id
            whose files are in the local cache.

    Raises:
        WeightsError: nothing is there, or it is not a model.
    """
    path = EMBEDDED if name is None else Path(name).expanduser()
    if path.is_file():
        reject_pickle(path)
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"model {path}: not a model; give a diffusers folder or a .safetensors file"
            )
        return path
    if path.is_dir():
        return FolderSource(path).path
    model_id = "" if name is None else Path(name).as_posix()
    if is_model_id(model_id):
        cached = find_cached_model(model_id)
        if cached is not None:
            return _check_complete(model_id, cached)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    if not hint and is_model_id(model_id):
        hint = (
            f", and no such id in the cache; `lorasmith model info {model_id} --download` "
            "fetches it"
        )
    noun = "file" if path.suffix in (".safetensors", *PICKLE_SUFFIXES) else "folder"
    raise WeightsError(f"model {path}: no such {noun}{hint}")


def _check_complete(name: str, cached: Path) -> Path:
    """Return a model's folder in the cache if it is complete."""
    try:
        return FolderSource(cached).path
    except WeightsError as error:
        raise WeightsError(
            f"{error}; if the cache has only a part of {name}, `lorasmith model info {name} "
            "--download` fetches the rest"
        ) from error


def open_source(name: str | Path | None = None) -> ModelSource:
    """Open a stored model without reading its weights; for names see `resolve_model_path`.

    Raises:
        WeightsError: nothing is there, or it is not a complete model.
    """
    path = resolve_model_path(name)
    return SingleFileSource(path) if path.is_file() else FolderSource(path)


def load_model(name: str | Path | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Load a model on the CPU; for names see `resolve_model_path`.

    Weights are memory-mapped and cast one by one; those that are stored in ``dtype`` take no
    memory.

    Args:
        name: None is the embedded model.
        dtype: of the networks; SDXL's autoencoder stays in float32 where it overflows in float16.

    Raises:
        WeightsError: a part is missing or its weights are damaged; the part is named.
    """
    source = open_source(name)
    parts: dict[str, Any] = {part: _build_empty(source, part) for part in source.networks}
    names = {part: list(canonical_state_dict(network)) for part, network in parts.items()}
    source.check(names)
    has_two_encoders = "text_encoder_2" in parts
    for part, network in parts.items():
        with naming_part(source.path, part):
            part_dtype = _vae_dtype(network, has_two_encoders, dtype) if part == "vae" else dtype
            load_weights(network, source.tensors(part, names[part]), part_dtype)
    has_first_encoder = "text_encoder" in parts
    return Model(
        source.path,
        parts["unet"],
        parts["vae"],
        parts.get("text_encoder"),
        source.tokenizer("tokenizer") if has_first_encoder else None,
        _load_scheduler_config(source, parts["unet"]),
        parts.get("text_encoder_2"),
        source.tokenizer("tokenizer_2") if has_two_encoders else None,
    )


def _build_empty(source: ModelSource, part: str) -> Any:
    with naming_part(source.path, part):
        return build_empty_part(source, part)


def _vae_dtype(vae: Any, two_encoders: bool, dtype: torch.dtype) -> torch.dtype:
    """Return float32 for an SDXL autoencoder that was not fine-tuned for float16."""
    overflows = two_encoders and vae.config.force_upcast and dtype == torch.float16
    return torch.float32 if overflows else dtype


def _load_scheduler_config(source: ModelSource, unet: Any) -> dict[str, Any]:
    """Return the scheduler's config, with the prediction type measured where it is unknown."""
    with naming_part(source.path, "scheduler"):
        config = source.config("scheduler")
    if source.variant.prediction_type is None:
        config["prediction_type"] = measure_prediction_type(unet)
        if config["prediction_type"] == "epsilon":
            known = replace(source.variant, prediction_type="epsilon")
            unet.register_to_config(sample_size=unet_config(known)["sample_size"])
    return config


def load_text_encoder(folder: Path) -> "CLIPTextModel":
    """Load the text encoder part of a folder in float32."""
    from transformers import CLIPTextModel

    return load_network(CLIPTextModel, folder, "text_encoder")


def load_tokenizer(folder: Path, part: str = "tokenizer") -> "CLIPTokenizer":
    """Load a tokenizer part of a folder."""
    return load_folder_tokenizer(folder, part)


def load_network(kind: Any, folder: Path, part: str) -> Any:
    """Load one network of a folder in float32.

    Args:
        kind: its class in diffusers or transformers.
        folder: the folder that the part's folder is in.
        part: the part's folder.

    Raises:
        WeightsError: it is missing, damaged, or of another class.
    """
    with naming_part(folder, part):
        network = build_empty_network(kind, read_json(folder, f"{part}/config.json"))
        load_weights(network, find_part_tensors(folder / part, part), torch.float32)
    return network
