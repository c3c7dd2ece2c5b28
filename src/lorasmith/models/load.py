"""Loading Stable Diffusion models from diffusers folders, single files and the local cache."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.build import build_empty_network, canonical_state_dict, load_weights
from lorasmith.models.files.configs import CLASSES, TOKENIZERS, unet_config
from lorasmith.models.files.known_configs import select_known
from lorasmith.models.files.open import open_source
from lorasmith.models.files.source import (
    ModelSource,
    build_empty_part,
    load_folder_tokenizer,
    naming_part,
)
from lorasmith.models.files.stored_tensors import CLIP, VISION_LEVEL, find_part_tensors
from lorasmith.models.model import Model, vae_dtype_for
from lorasmith.models.prediction_type import measure_prediction_type
from lorasmith.models.read_json import read_json
from lorasmith.models.text.tokenizer_files import check_tokenizer_fits

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


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
            part_dtype = vae_dtype_for(network, has_two_encoders, dtype) if part == "vae" else dtype
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
    """Load a tokenizer part of a folder; one beside its text encoder is compared with that.

    Raises:
        WeightsError: a file is missing or damaged, or the two are not of one model.
    """
    tokenizer = load_folder_tokenizer(folder, part)
    encoders = [name for name, other in TOKENIZERS.items() if other == part]
    for encoder in encoders:
        if (folder / encoder / "config.json").exists():
            config = read_json(folder, f"{encoder}/config.json")
            try:
                check_tokenizer_fits(tokenizer, select_known(CLASSES[encoder], config, encoder))
            except WeightsError as error:
                raise WeightsError(f"model {folder}: its {part} {error}") from error
    return tokenizer


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


def load_clip_network(kind: Any, folder: Path) -> Any:
    """Load a whole CLIP, or what is built on one, from a folder of its own, in float32.

    Args:
        kind: ``CLIPModel`` or ``StableDiffusionSafetyChecker``.
        folder: holds ``config.json`` and the weights.

    Raises:
        WeightsError: a file is missing, damaged, pickled, or of another class.
    """
    network = build_empty_network(kind, read_json(folder, "config.json"))
    names = canonical_state_dict(network)
    tensors = find_part_tensors(folder, CLIP)
    doubled = f"{VISION_LEVEL}{VISION_LEVEL}"  # transformers 5 dropped a level here
    fitting = {
        name.replace(doubled, VISION_LEVEL) if name not in names else name: tensor
        for name, tensor in tensors.items()
    }
    load_weights(network, fitting, torch.float32)
    return network.requires_grad_(False).eval()
