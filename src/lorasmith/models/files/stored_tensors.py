"""Tensors where they are stored: found and checked by their headers, read when asked for."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_header import PICKLE_SUFFIXES
from lorasmith.core.safetensors_io import SafetensorsFile

STEMS = ("diffusion_pytorch_model", "model")
"""What weights are called in the folders of diffusers and of transformers."""
_FAVOURITES = ("", "fp32", "bf16", "fp16")
"""Variants in the order in which they are taken; the first is the one without a name."""
_LAST = "non_ema"

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the projections of an autoencoder's attention before version 0.15."""
_OLD_VAE_NAME = re.compile(rf"(.*\.attentions\.0)\.({'|'.join(OLD_VAE_ATTENTION)})\.(\w+)")
TEXT_LEVEL = "text_model."
"""A level of text encoders that files have in their names and CLIPTextModel has no longer."""
_UNUSED_TEXT = re.compile(r"embeddings\.position_ids|logit_scale|vision_model\..*|visual_proj.*")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a network."""

    shape: tuple[int, ...]
    """Its shape as the network has it."""
    dtype: str
    """Its number format in the file, in safetensors' words."""
    read: Callable[[], torch.Tensor]
    """Returns it, memory-mapped where it is kept as the network has it."""


StoredTensors = Mapping[str, StoredTensor]
"""A network's tensors by their names."""


def wrap_tensor(tensor: torch.Tensor) -> StoredTensor:
    """Return a tensor that is in memory as if it were stored."""
    return StoredTensor(tuple(tensor.shape), str(tensor.dtype), lambda: tensor)


def canonical_name(part: str, name: str) -> str | None:
    """Return what today's diffusers and transformers call a tensor of a folder's weights.

    Names of text encoders are without ``text_model.``. None is a tensor that nothing depends on.
    """
    if part.startswith("text_encoder"):
        name = name.removeprefix(TEXT_LEVEL)
        unused = _UNUSED_TEXT.fullmatch(name)
        # A text encoder without its projection may be saved with it.
        return None if unused or (name, part) == _FIRST_PROJECTION else name
    old = _OLD_VAE_NAME.fullmatch(name) if part == "vae" else None
    return f"{old[1]}.{OLD_VAE_ATTENTION[old[2]]}.{old[3]}" if old else name


_FIRST_PROJECTION = ("text_projection.weight", "text_encoder")


def find_part_tensors(place: Path, part: str) -> dict[str, StoredTensor]:
    """Return the tensors of a part's folder by their plain names.

    Raises:
        WeightsError: there are no weights, a file of them is missing, damaged or a pickle.
    """
    found: dict[str, StoredTensor] = {}
    for name, file in _named_tensors(place).items():
        plain = canonical_name(part, name)
        if plain is not None:
            facts = file.header.tensors[name]
            found[plain] = StoredTensor(facts.shape, facts.dtype, partial(file.read_tensor, name))
    return found


def uses_text_level(place: Path) -> bool:
    """Tell whether a text encoder's weights have ``text_model.`` in their names."""
    return any(name.startswith(TEXT_LEVEL) for name in _named_tensors(place))


def _named_tensors(place: Path) -> dict[str, SafetensorsFile]:
    chosen = choose_weights_file(place)
    if chosen.suffix != ".json":
        file = SafetensorsFile(chosen)
        return dict.fromkeys(file.header.tensors, file)
    names = _weight_map(chosen)
    files = {name: SafetensorsFile(place / name) for name in sorted(set(names.values()))}
    lost = [name for name, file in names.items() if name not in files[file].header.tensors]
    if lost:
        raise WeightsError(f"{chosen}: {len(lost)} tensors are not where it says, first {lost[0]}")
    return {name: files[file] for name, file in names.items()}


def choose_weights_file(place: Path) -> Path:
    """Return the weights file of a part's folder, or the index of its shards.

    Without a variant's name before one with; ``non_ema`` last.

    Raises:
        WeightsError: there is none.
    """
    found: dict[str, Path] = {}
    for stem in STEMS:
        for path in sorted(place.glob(f"{stem}.*")):
            pattern = (
                rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json"
            )
            match = re.fullmatch(pattern, path.name)
            if match:
                found.setdefault(match[1] or match[2] or "", path)
    if not found:
        raise _without_weights(place)
    return found[min(found, key=_rank)]


def _rank(variant: str) -> tuple[int, str]:
    if variant in _FAVOURITES:
        return _FAVOURITES.index(variant), variant
    return len(_FAVOURITES) + (variant == _LAST), variant


def _without_weights(place: Path) -> WeightsError:
    pickles = sorted(path.name for path in place.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return WeightsError(
            f"{place} has only pickled weights ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors on a machine that you can throw away (docs/models.md "
            "says how)"
        )
    return WeightsError(
        f"{place} has no weights ({STEMS[0]}.safetensors or {STEMS[1]}.safetensors)"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Return which file of the same folder each tensor is in."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not a list of shards ({error})") from error
    outside = [file for file in files.values() if Path(file).name != file or "\\" in file]
    if outside:
        raise WeightsError(f"{index}: names {outside[0]!r}, which is not a file beside it")
    return files
