"""Stored tensors: found through file headers and read on demand."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
from lorasmith.core.safetensors_io import SafetensorsFile
from lorasmith.models.read_json import read_json

STEMS = ("diffusion_pytorch_model", "model")
"""Stems of weight files in the folders of diffusers and of transformers."""
_PREFERRED_VARIANTS = ("", "fp32", "bf16", "fp16")
"""Variants in order of preference; the first is the one without a name."""
_LEAST_PREFERRED = "non_ema"

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the projections of an autoencoder's attention before diffusers 0.15."""
_OLD_VAE_NAME = re.compile(rf"(.*\.attentions\.0)\.({'|'.join(OLD_VAE_ATTENTION)})\.(\w+)")
TEXT_LEVEL = "text_model."
"""A level in the names of files that transformers 5's CLIPTextModel does not have."""
VISION_LEVEL = "vision_model."
CLIP = "clip"
"""A whole CLIP, with both of its encoders, in a folder of its own."""
_UNUSED_TEXT = re.compile(r"embeddings\.position_ids|logit_scale|vision_model\..*|visual_proj.*")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a network in a file."""

    shape: tuple[int, ...]
    """Its shape in the network."""
    dtype: str
    """Its dtype in the file, in safetensors' words."""
    read: Callable[[], torch.Tensor]
    """Reads it, memory-mapped where the file's form is the network's."""


StoredTensors = Mapping[str, StoredTensor]
"""A network's tensors by canonical names."""


def wrap_tensor(tensor: torch.Tensor) -> StoredTensor:
    """Wrap a tensor in memory as a stored one."""
    return StoredTensor(tuple(tensor.shape), str(tensor.dtype), lambda: tensor)


def canonical_name(part: str, name: str) -> str | None:
    """Return the current diffusers or transformers name of a tensor in a folder.

    Names of text encoders have no ``text_model.``. None means that the tensor is unused.
    """
    if part.startswith("text_encoder"):
        name = name.removeprefix(TEXT_LEVEL)
        unused = _UNUSED_TEXT.fullmatch(name)
        # A text encoder without its projection may be saved with it.
        return None if unused or (name, part) == _FIRST_PROJECTION else name
    if part == CLIP:
        return None if name.endswith("position_ids") else name.removeprefix(TEXT_LEVEL)
    old = _OLD_VAE_NAME.fullmatch(name) if part == "vae" else None
    return f"{old[1]}.{OLD_VAE_ATTENTION[old[2]]}.{old[3]}" if old else name


_FIRST_PROJECTION = ("text_projection.weight", "text_encoder")


def find_part_tensors(folder: Path, part: str) -> dict[str, StoredTensor]:
    """Return the tensors of a part's folder by canonical names.

    Raises:
        WeightsError: weights are missing, damaged or pickled.
    """
    tensors: dict[str, StoredTensor] = {}
    for name, file in _open_files(folder).items():
        canonical = canonical_name(part, name)
        if canonical is not None:
            info = file.header.tensors[name]
            tensors[canonical] = StoredTensor(
                info.shape, info.dtype, partial(file.read_tensor, name)
            )
    return tensors


def uses_text_level(folder: Path) -> bool:
    """Tell whether a text encoder's weights have ``text_model.`` in their names."""
    return any(name.startswith(TEXT_LEVEL) for name in _open_files(folder))


def _open_files(folder: Path) -> dict[str, SafetensorsFile]:
    weights_file = choose_weights_file(folder)
    if weights_file.suffix != ".json":
        file = SafetensorsFile(weights_file)
        return dict.fromkeys(file.header.tensors, file)
    weight_map = _read_weight_map(weights_file)
    files = {name: SafetensorsFile(folder / name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, file in weight_map.items() if name not in files[file].header.tensors]
    if missing:
        raise WeightsError(
            f"{weights_file}: {len(missing)} tensors are not where it says, first {missing[0]}"
        )
    return {name: files[file] for name, file in weight_map.items()}


def choose_weights_file(folder: Path) -> Path:
    """Return the weights file of a part's folder, or the index of its shards, by variant.

    Raises:
        WeightsError: there is none.
    """
    by_variant: dict[str, Path] = {}
    for stem in STEMS:
        for path in sorted(folder.glob(f"{stem}.*")):
            pattern = (
                rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json"
            )
            match = re.fullmatch(pattern, path.name)
            if match:
                by_variant.setdefault(match[1] or match[2] or "", path)
    if not by_variant:
        raise _no_weights_error(folder)
    return by_variant[min(by_variant, key=_variant_rank)]


def list_weights_files(folder: Path) -> list[Path]:
    """Return the weights files that a part's folder must have; they may not exist.

    Raises:
        WeightsError: there are no weights, only pickled ones, or their index is damaged.
    """
    weights_file = choose_weights_file(folder)
    if weights_file.suffix != ".json" or not weights_file.is_file():
        return [weights_file]
    return [folder / name for name in sorted(set(_read_weight_map(weights_file).values()))]


def _variant_rank(variant: str) -> tuple[int, str]:
    if variant in _PREFERRED_VARIANTS:
        return _PREFERRED_VARIANTS.index(variant), variant
    return len(_PREFERRED_VARIANTS) + (variant == _LEAST_PREFERRED), variant


def _no_weights_error(folder: Path) -> WeightsError:
    shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
    if shards:
        stem = re.sub(r"-\d+-of-\d+\.safetensors$", "", shards[0])
        return WeightsError(
            f"{stem}.safetensors.index.json is missing: {folder} has shards of weights "
            f"({shards[0]}) without the index; copy or download the folder again"
        )
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return WeightsError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors on a machine that you can throw away (docs/models.md "
            "says how)"
        )
    return WeightsError(
        f"{folder} has no weights ({STEMS[0]}.safetensors or {STEMS[1]}.safetensors); copy or "
        "download the folder again"
    )


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return each tensor's file in the folder of the index."""
    try:
        names = read_json(index.parent, index.name)["weight_map"]
        files = {str(name): str(file) for name, file in names.items()}
    except (WeightsError, KeyError, AttributeError) as error:
        raise WeightsError(f"{index}: not a list of shards ({error})") from error
    outside = [file for file in files.values() if Path(file).name != file or "\\" in file]
    if outside:
        raise WeightsError(f"{index}: names {outside[0]!r}, which is not a file beside it")
    return files
