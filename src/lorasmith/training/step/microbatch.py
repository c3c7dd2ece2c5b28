"""What a step computes in one pass of the model, and what CUDA graphs of it depend on."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch

from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise

_HOST_FIELD = "indices"
"""The field of a batch that stays on the CPU; it is for messages only."""
_BATCH_FIELDS = [field.name for field in fields(Batch) if field.name != _HOST_FIELD]


class Microbatch(NamedTuple):
    """What one LoRA adds to one of a step's passes of the model."""

    lora_index: int
    """Which of the LoRAs that are trained jointly."""
    turn: int
    """Microbatches of one turn may share a pass."""
    batch_size: int
    """Images of the LoRA's whole step, over all microbatches and processes."""
    batch: Batch
    noise: Noise


def group_by_shape(microbatches: Sequence[Microbatch]) -> Iterator[list[Microbatch]]:
    """Yield microbatches that share a pass: one turn, task, latent shape and text length."""
    for _, turn in groupby(microbatches, key=lambda microbatch: microbatch.turn):
        groups: dict[tuple[str, torch.Size, int], list[Microbatch]] = {}
        for microbatch in turn:
            batch = microbatch.batch
            key = batch.task, batch.latents.shape[1:], batch.text_length
            groups.setdefault(key, []).append(microbatch)
        yield from groups.values()


def graph_key(microbatches: Sequence[Microbatch]) -> Hashable:
    """Return all that a pass depends on besides the values of tensors on the device."""
    return tuple(
        (
            microbatch.lora_index,
            microbatch.turn,
            microbatch.batch_size,
            *(_static_key(getattr(microbatch.batch, name)) for name in _BATCH_FIELDS),
            *map(_static_key, microbatch.noise),
        )
        for microbatch in microbatches
    )


def _static_key(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_static_key(item) for item in value)
    hashable: Hashable = value
    return hashable


def graph_inputs(microbatches: Sequence[Microbatch]) -> list[torch.Tensor]:
    """Return the tensors on the device, always in the same order."""
    values: list[Any] = []
    for microbatch in microbatches:
        values += [getattr(microbatch.batch, name) for name in _BATCH_FIELDS]
        values += microbatch.noise
    return [value for value in values if isinstance(value, torch.Tensor)]


def replace_inputs(
    microbatches: Sequence[Microbatch], inputs: Sequence[torch.Tensor]
) -> list[Microbatch]:
    """Return microbatches with other tensors, in the order of `graph_inputs`."""
    tensors = iter(inputs)

    def replaced(microbatch: Microbatch) -> Microbatch:
        batch = microbatch.batch
        values = {name: getattr(batch, name) for name in _BATCH_FIELDS}
        changes: dict[str, Any] = {
            name: next(tensors) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        noise = Noise(*(next(tensors) for _ in Noise._fields))
        return microbatch._replace(batch=replace(batch, **changes), noise=noise)

    return [replaced(microbatch) for microbatch in microbatches]
