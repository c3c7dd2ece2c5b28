"""Reading the tensors of a single file in diffusers' form."""

from collections.abc import Callable
from functools import partial
from math import prod

import torch

from lorasmith.core.safetensors_io import SafetensorsFile
from lorasmith.models.families.ldm_keys import STACKED, TensorEntry, TensorForm
from lorasmith.models.files.stored_tensors import StoredTensor


def split_entry(entry: TensorEntry, file: SafetensorsFile, key: str) -> dict[str, StoredTensor]:
    """Return the diffusers tensors of an entry."""
    info = file.header.tensors[key]
    shape = info.shape
    if entry.form is TensorForm.STACKED:
        width = shape[0] // len(STACKED)
        return {
            name: StoredTensor(
                (width, *shape[1:]), info.dtype, partial(_read_slice, file, key, i, width)
            )
            for i, name in enumerate(entry.names)
        }
    read: Callable[[], torch.Tensor] = partial(file.read_tensor, key)
    if entry.form is TensorForm.TRANSPOSED:
        shape, read = shape[::-1], partial(_read_transposed, file, key)
    elif entry.form is TensorForm.CONVOLUTION and prod(shape[2:]) == 1:
        shape = shape[:2]  # some programs leave the last two dimensions out
        read = partial(_read_reshaped, file, key, shape)
    return {entry.names[0]: StoredTensor(shape, info.dtype, read)}


def _read_slice(file: SafetensorsFile, key: str, i: int, width: int) -> torch.Tensor:
    return file.read_tensor(key)[i * width : (i + 1) * width]


def _read_transposed(file: SafetensorsFile, key: str) -> torch.Tensor:
    return file.read_tensor(key).t().contiguous()


def _read_reshaped(file: SafetensorsFile, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    return file.read_tensor(key).reshape(shape)
