"""Single files of published models in their true sizes: all headers, no bytes (sparse files)."""

import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from lorasmith.models.families.family import ModelVariant
from lorasmith.models.families.ldm_keys import TensorForm
from lorasmith.models.files.build import build_empty_network, canonical_state_dict
from lorasmith.models.files.configs import CLASSES, DIFFUSERS_PARTS, component_config

VARIANTS = {
    "sd1": ModelVariant("sd1", prediction_type="epsilon"),
    "sd1-inpainting": ModelVariant("sd1", True, "epsilon"),
    "sd2-base": ModelVariant("sd2", prediction_type="epsilon"),
    "sd2-v": ModelVariant("sd2", prediction_type="v_prediction"),
    "sd2-inpainting": ModelVariant("sd2", True, "epsilon"),
    "sdxl": ModelVariant("sdxl", prediction_type="epsilon"),
    "sdxl-inpainting": ModelVariant("sdxl", True, "epsilon"),
    "sdxl-refiner": ModelVariant("sdxl-refiner", prediction_type="epsilon"),
}
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}


def empty_parts(variant: ModelVariant) -> dict[str, Any]:
    """The networks of a published model, on the meta device."""
    import diffusers
    import transformers

    parts = ("unet", "vae", *variant.family.text_encoders)
    return {
        part: build_empty_network(
            getattr(diffusers if part in DIFFUSERS_PARTS else transformers, CLASSES[part]),
            component_config(variant, part),
        )
        for part in parts
    }


@cache
def folder_shapes(name: str) -> dict[str, dict[str, torch.Size]]:
    """Shapes in diffusers' naming of each part of a variant."""
    networks = empty_parts(VARIANTS[name])
    return {
        part: {key: value.shape for key, value in canonical_state_dict(network).items()}
        for part, network in networks.items()
    }


@cache
def file_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a variant's single file by the original names."""
    shapes, variant = folder_shapes(name), VARIANTS[name]
    configs = {part: component_config(variant, part) for part in shapes}
    result: dict[str, tuple[int, ...]] = {}
    for entry in variant.family.single_file.entries(shapes, configs):
        shape = tuple(shapes[entry.part][entry.names[0]])
        if entry.form is TensorForm.STACKED:
            shape = (len(entry.names) * shape[0], *shape[1:])
        elif entry.form is TensorForm.TRANSPOSED:
            shape = shape[::-1]
        elif entry.form is TensorForm.CONVOLUTION:
            shape = (*shape, 1, 1)
        result[entry.key] = shape
    return result


def write_sparse(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F16",
    metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write a safetensors file whose weights are a hole in the file: zeros that take no disk."""
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    offset = 0
    for name, shape in shapes.items():
        size = prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    return path
