"""The layers of a LoRA file by the names that files for a family have, whatever its own are."""

import warnings
from collections.abc import Mapping, Sequence

import torch

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.files.unknown_keys import example_keys, is_for_later_family
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.models.families.family import get_family


def canonical_layers(
    file: LoraFile, family: str | None, ignore_unknown: bool = False
) -> dict[str, AdapterLayer]:
    """Return a file's layers by their kohya names in a family.

    Args:
        file: the file.
        family: decides the names; None keeps SD's.
        ignore_unknown: leave out layers that are no layers of Stable Diffusion, with a warning.

    Raises:
        WeightsError: layers have unknown names, or no place in the family, or two names are of one
            layer. The message has counts.
    """
    paths = {name: parse_layer_name(name) for name in file.layers}
    known = {name: path for name, path in paths.items() if path is not None}
    unknown = [name for name, path in paths.items() if path is None]
    if unknown:
        _report_unknown(file, unknown, ignore_unknown and bool(known))
    names = _kohya_names(file, known, family)
    layers: dict[str, AdapterLayer] = {}
    for name, kohya in names.items():
        if kohya in layers:
            raise WeightsError(f"{file.path}: {kohya} is in it under two names, {name} is one")
        layers[kohya] = file.layers[name]
    return layers


def merge_embeddings(files: Sequence[LoraFile]) -> dict[str, torch.Tensor]:
    """Return the bundled embeddings of files; of two with one key the first counts, with a warning
    if they differ."""
    merged: dict[str, torch.Tensor] = {}
    for file in files:
        for key, tensor in file.embeddings.items():
            first = merged.setdefault(key, tensor)
            if not torch.equal(first, tensor):
                warnings.warn(
                    f"{file.path}: its embedding {key} differs from that of another file, which is "
                    "kept",
                    LorasmithWarning,
                    stacklevel=3,
                )
    return merged


def _kohya_names(
    file: LoraFile, paths: Mapping[str, LayerPath], family: str | None
) -> dict[str, str]:
    names, misfits = {}, []
    for name, path in paths.items():
        try:
            names[name] = path.kohya_name(family)
        except KeyError:
            misfits.append(name)
    if misfits and family is not None:
        raise WeightsError(
            f"{file.path}: {misfits[0]} has no place in {get_family(family).title}, like "
            f"{len(misfits)} of its {len(file.layers)} layers; it is for another family"
        )
    return names


def _report_unknown(file: LoraFile, unknown: Sequence[str], ignore: bool) -> None:
    problem = (
        f"{file.path}: {len(unknown)} of its {len(file.layers)} layers have names that no Stable "
        f"Diffusion model has{example_keys(unknown)}"
    )
    if not ignore:
        later = any(is_for_later_family(name) for name in unknown)
        raise WeightsError(
            f"{problem}; it is for a later family (Flux, SD 3), which lorasmith does not support"
            if later
            else f"{problem}; --ignore-unknown leaves them out"
            if len(unknown) < len(file.layers)
            else f"{problem}; it is for another kind of model"
        )
    warnings.warn(f"{problem}; left out, as you asked", LorasmithWarning, stacklevel=4)
