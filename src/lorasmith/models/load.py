"""Opening a Stable Diffusion model in diffusers' folder layout, with errors that name the part."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import WeightsError, did_you_mean

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"
"""The miniature base model that ships with the package."""

# diffusers imports bitsandbytes where it is installed, which says what it could not load.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SECOND_PARTS = ("text_encoder_2", "tokenizer_2")
"""What SDXL has besides."""


@dataclass
class Model:
    """The parts of one Stable Diffusion model."""

    folder: Path
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    scheduler_config: dict[str, Any]
    text_encoder_2: "CLIPTextModelWithProjection | None" = None
    """SDXL's second text encoder."""
    tokenizer_2: "CLIPTokenizer | None" = None
    """Its tokenizer."""

    @property
    def text_encoders(self) -> "list[CLIPTextModel | CLIPTextModelWithProjection]":
        """The text encoder, or both."""
        return [one for one in (self.text_encoder, self.text_encoder_2) if one is not None]

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side (8 for Stable Diffusion 1.x)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def default_size(self) -> int:
        """The picture size that the U-Net was trained at, in pixels."""
        return int(self.unet.config.sample_size) * self.downscale

    def to(self, device: torch.device, dtype: torch.dtype) -> "Model":
        """Move the networks, frozen and in evaluation mode."""
        with quiet():  # diffusers warns about parts to be kept in float32 even where there are none
            for part in (self.unet, self.vae, *self.text_encoders):
                part.to(device=device, dtype=dtype).requires_grad_(False).eval()
            if dtype == torch.float16 and self.text_encoder_2 is not None:
                # SDXL's VAE overflows in float16 unless it was trained again for it.
                self.vae.to(dtype=torch.float32 if self.vae.config.force_upcast else dtype)
        return self


def resolve_model(name: str | Path | None) -> Path:
    """Return the folder of a model; None is the embedded one.

    Raises:
        WeightsError: no such folder, or not a diffusers model folder.
    """
    folder = EMBEDDED if name is None else Path(name).expanduser()
    if not folder.is_dir():
        near = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise WeightsError(f"model {folder}: no such folder{did_you_mean(folder.name, near)}")
    if not (folder / "model_index.json").is_file():
        raise WeightsError(
            f"model {folder}: not a diffusers model folder (model_index.json is missing)"
        )
    second = SECOND_PARTS if any((folder / part).is_dir() for part in SECOND_PARTS) else ()
    missing = [part for part in (*PARTS, *second) if not (folder / part).is_dir()]
    if missing:
        raise WeightsError(f"model {folder}: missing part {', '.join(missing)}")
    return folder


def load_model(name: str | Path | None = None) -> Model:
    """Load a model's parts on the CPU in float32.

    Raises:
        WeightsError: a part is missing or its weights are damaged; the part is named.
    """
    folder = resolve_model(name)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = load_part(UNet2DConditionModel, folder, "unet")
    vae = load_part(AutoencoderKL, folder, "vae")
    return Model(
        folder,
        unet,
        vae,
        load_text_encoder(folder),
        load_tokenizer(folder),
        scheduler_config(folder),
        *(_second_text_side(folder) if (folder / "text_encoder_2").is_dir() else (None, None)),
    )


def load_text_encoder(folder: Path) -> "CLIPTextModel":
    """Load the text encoder part in float32."""
    from transformers import CLIPTextModel

    return load_part(CLIPTextModel, folder, "text_encoder")


def load_tokenizer(folder: Path, part: str = "tokenizer") -> "CLIPTokenizer":
    """Load a tokenizer part."""
    from transformers import CLIPTokenizer

    with quiet(), _named(folder, part):
        return CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)


def _second_text_side(folder: Path) -> "tuple[CLIPTextModelWithProjection, CLIPTokenizer]":
    from transformers import CLIPTextModelWithProjection

    encoder = load_part(CLIPTextModelWithProjection, folder, "text_encoder_2")
    return encoder, load_tokenizer(folder, "tokenizer_2")


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Read the scheduler's config."""
    with _named(folder, "scheduler"):
        text = (folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
        return dict(json.loads(text))


def load_part(kind: Any, folder: Path, part: str) -> Any:
    """Load one network with ``from_pretrained`` in float32, never from the network."""
    with quiet(), _named(folder, part):
        _require_kind(kind.__name__, folder / part / "config.json")
        # transformers obeys the dtype in config.json and diffusers does not; ask for one both obey.
        key = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
        return kind.from_pretrained(folder / part, local_files_only=True, **{key: torch.float32})


def _require_kind(wanted: str, config: Path) -> None:
    """Refuse a part of another class, which diffusers would load with random weights."""
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    name = found.get("_class_name", wanted)
    if name != wanted:
        raise ValueError(f"it is a {name}, not a {wanted}")


@contextmanager
def _named(folder: Path, part: str) -> Iterator[None]:
    """Turn whatever a library raises on damaged files into one error that names the part."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"model {folder}: {part} cannot be loaded: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and warnings out of ours while a model loads."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [
        lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()
    ]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        for library in libraries:
            library.enable_progress_bar()
