"""Converting models between folders and single files.

Tensors go from file to file without building the networks; what is not cast stays bit for bit the
same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.files import atomic_folder, write_text
from lorasmith.core.safetensors_io import save_tensors
from lorasmith.core.version import VERSION
from lorasmith.models.families.family import (
    MODELSPEC_PREDICTIONS,
    ModelVariant,
    PredictionType,
)
from lorasmith.models.families.ldm_keys import TensorEntry, TensorForm
from lorasmith.models.files.build import canonical_state_dict, check_tensors, load_weights
from lorasmith.models.files.configs import (
    DIFFUSERS_PARTS,
    TOKENIZERS,
    component_config,
    model_index,
)
from lorasmith.models.files.saved_configs import CONFIGS
from lorasmith.models.files.source import INDEX, ModelSource, build_empty_part, naming_part
from lorasmith.models.files.stored_tensors import STEMS, TEXT_LEVEL, StoredTensors
from lorasmith.models.prediction_type import measure_prediction_type
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.models.text.tokenizer import create_clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_HIDDEN = ("_name_or_path", "_diffusers_version", "transformers_version")


@dataclass(frozen=True)
class ModelContents:
    """A model as it is written."""

    variant: ModelVariant
    """What it is; its prediction type is known."""
    tensors: Mapping[str, StoredTensors]
    """Each network's stored tensors by canonical names."""
    configs: Mapping[str, Mapping[str, Any]]
    """The configs of its networks and of its scheduler."""
    tokenizers: "Mapping[str, CLIPTokenizer]"
    flat_text: tuple[str, ...]
    """Text encoders whose tensors have no ``text_model.`` in their names in folders."""
    unknown: tuple[str, ...] = ()
    """Tensors that belong to no part, and are left out."""


def read_contents(
    source: ModelSource, prediction: PredictionType | None = None, ignore_unknown: bool = False
) -> ModelContents:
    """Check a stored model and return its contents.

    Args:
        source: the model.
        prediction: what it predicts; None takes it from the source, or measures it.
        ignore_unknown: leave out tensors of a single file that belong to no part.

    Raises:
        WeightsError: a part is missing or damaged, or something belongs to no part.
    """
    networks = {part: build_empty_part(source, part) for part in source.networks}
    names = {part: list(canonical_state_dict(network)) for part, network in networks.items()}
    unknown = source.check(names, ignore_unknown)
    tensors: dict[str, StoredTensors] = {}
    for part, network in networks.items():
        with naming_part(source.path, part):
            tensors[part] = source.tensors(part, names[part])
            check_tensors(network, tensors[part])
    known = prediction or source.variant.prediction_type
    if known is None:
        load_weights(networks["unet"], tensors["unet"], torch.float32)
        known = measure_prediction_type(networks["unet"])
    text = [part for part in source.networks if part in TOKENIZERS]
    return ModelContents(
        replace(source.variant, prediction_type=known),
        tensors,
        _configs(source, known),
        {TOKENIZERS[part]: source.tokenizer(TOKENIZERS[part]) for part in text},
        tuple(part for part in text if not source.has_text_level(part)),
        unknown,
    )


def _configs(source: ModelSource, known: PredictionType) -> dict[str, dict[str, Any]]:
    """Return the source's configs, completed where it did not say what the model predicts."""
    configs = {part: source.config(part) for part in (*source.networks, "scheduler")}
    if source.variant.prediction_type is None:
        variant = replace(source.variant, prediction_type=known)
        for part in (*DIFFUSERS_PARTS, "scheduler"):
            configs[part] = component_config(variant, part)
    configs["scheduler"]["prediction_type"] = known
    return {
        part: {key: value for key, value in config.items() if key not in _HIDDEN}
        for part, config in configs.items()
    }


def save_single_file(model: ModelContents, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model as a single file with the original (LDM) names.

    Args:
        model: see `read_contents`.
        path: must not exist.
        dtype: of all weights; None leaves each as it is.

    Raises:
        WeightsError: its tokenizer is not CLIP's, so that the file could not be read again; a
            weight is not finite.
        OutputError: it cannot be written.
    """
    for tokenizer_part, encoder in (
        (TOKENIZERS[name], name) for name in model.tensors if name in TOKENIZERS
    ):
        _check_tokenizer(model, tokenizer_part, encoder)
    names = {tokenizer_part: list(tensors) for tokenizer_part, tensors in model.tensors.items()}
    entries = model.variant.family.single_file.entries(names, model.configs)
    tensors = {entry.key: _cast(_to_single_file_form(entry, model), dtype) for entry in entries}
    save_tensors(path, tensors, _metadata(model, path.stem))


def _check_tokenizer(model: ModelContents, tokenizer_part: str, encoder: str) -> None:
    tokenizer = model.tokenizers[tokenizer_part]
    clip = create_clip_tokenizer(
        int(model.configs[encoder]["vocab_size"]), str(tokenizer.pad_token)
    )
    is_clip = (
        tokenizer.get_vocab() == clip.get_vocab()
        and tokenizer.model_max_length == clip.model_max_length
    )
    if not is_clip:
        raise WeightsError(
            f"its {tokenizer_part} is not CLIP's, and single files hold no tokenizers: it would be "
            "read with another one; keep it as a folder"
        )


def _to_single_file_form(entry: TensorEntry, model: ModelContents) -> torch.Tensor:
    """Return a tensor in the form that single files use."""
    values = [model.tensors[entry.part][name].read() for name in entry.names]
    if entry.form is TensorForm.STACKED:
        return torch.cat(values)
    if entry.form is TensorForm.TRANSPOSED:
        return values[0].t()
    return values[0][:, :, None, None] if entry.form is TensorForm.CONVOLUTION else values[0]


def _cast(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return value if dtype is None or not value.is_floating_point() else value.to(dtype)


def _metadata(model: ModelContents, title: str) -> dict[str, str]:
    """Return the metadata of a single file."""
    pads = {part: str(tokenizer.pad_token) for part, tokenizer in model.tokenizers.items()}
    saved = {"configs": model.configs, "pad_tokens": pads, "flat_text": list(model.flat_text)}
    variant = model.variant
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": variant.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{variant.native_size}x{variant.native_size}",
        "modelspec.prediction_type": MODELSPEC_PREDICTIONS[variant.prediction_type or "epsilon"],
        "lorasmith.version": VERSION,
        CONFIGS: json.dumps(saved, sort_keys=True),
    }


def save_folder(model: ModelContents, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model in diffusers' folder layout, atomically.

    Args:
        model: see `read_contents`.
        folder: must not exist.
        dtype: of all weights; None leaves each as it is.

    Raises:
        WeightsError: a weight is not finite.
        OutputError: it cannot be written.
    """
    from diffusers import __version__ as diffusers_version

    with atomic_folder(folder) as temporary:
        for part, tensors in model.tensors.items():
            stem = STEMS[0] if part in DIFFUSERS_PARTS else STEMS[1]
            weights = {
                _name_in_folder(model, part, name): _cast(stored.read(), dtype)
                for name, stored in tensors.items()
            }
            (temporary / part).mkdir()
            save_tensors(temporary / part / f"{stem}.safetensors", weights, {"format": "pt"})
            _write_json(temporary / part / "config.json", model.configs[part])
        for part, tokenizer in model.tokenizers.items():
            _write_tokenizer(tokenizer, temporary / part)
        (temporary / "scheduler").mkdir()
        scheduler = model.configs["scheduler"]
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        index = model_index(model.variant) | {"_diffusers_version": diffusers_version}
        index["scheduler"] = ["diffusers", scheduler.get("_class_name", index["scheduler"][1])]
        _write_json(temporary / INDEX, index)


def _name_in_folder(model: ModelContents, part: str, name: str) -> str:
    """Return a tensor's name in a folder, where text encoders have one more level."""
    has_level = part in TOKENIZERS and not name.startswith("text_projection")
    return TEXT_LEVEL + name if has_level and part not in model.flat_text else name


def _write_tokenizer(tokenizer: "CLIPTokenizer", folder: Path) -> None:
    """Write a tokenizer as transformers does, and as older programs read it."""
    with suppress_logs():
        tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
