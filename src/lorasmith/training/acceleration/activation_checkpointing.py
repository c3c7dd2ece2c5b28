"""Activation (gradient) checkpointing of some of a U-Net's blocks.

A checkpointed block does not save its activations for the backward pass but computes them again.
The fewer blocks do that, the faster a step is; the blocks that would save most come first. How many
are needed is found by trying the largest batch of the run: the memory of a step depends on too much
to be predicted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops.fp8 import fp8_weight_of
from lorasmith.training.acceleration.compile import iter_blocks


class ActivationCheckpointer:
    """Checkpoints selected blocks of a U-Net; none at first."""

    def __init__(self, unet: Any, has_dropout: bool = False) -> None:
        """Hook into a network.

        Args:
            unet: the U-Net, whose diffusers class calls the hook for every block.
            has_dropout: whether adapters draw random numbers, which must be restored when a block
                is computed again.
        """
        self.blocks = list(iter_blocks(unet))
        self._selected: set[nn.Module] = set()
        self._has_dropout = has_dropout
        unet.enable_gradient_checkpointing(self._call_block)

    def __len__(self) -> int:
        return len(self._selected)

    def select(self, blocks: Sequence[nn.Module]) -> None:
        """Checkpoint these blocks and no others."""
        self._selected = set(blocks)

    def select_all(self) -> None:
        self.select(self.blocks)

    def sort_by_saved_bytes(self, step: Callable[[], object]) -> list[nn.Module]:
        """Return the blocks sorted by how much each saves for its backward pass, the most first.

        No block is selected afterwards: checkpointed blocks save nothing that could be measured.

        Args:
            step: runs a forward pass and may start a backward pass, which does not happen.
        """
        self.select([])
        saved = measure_saved_bytes(self.blocks, step)
        return sorted(self.blocks, key=lambda block: -saved[block])

    def _call_block(self, block: nn.Module, *args: Any) -> Any:
        if block not in self._selected:
            return block(*args)
        # A CUDA graph cannot save the state of random numbers, and without dropout need not.
        return checkpoint(
            block.__call__, *args, use_reentrant=False, preserve_rng_state=self._has_dropout
        )


class BackwardReachedError(Exception):
    """A backward pass started although only the forward pass was of interest."""


def measure_saved_bytes(
    blocks: Sequence[nn.Module], step: Callable[[], object]
) -> dict[nn.Module, int]:
    """Return how many bytes each block saves in a forward pass; blocks must not be nested.

    The forward pass saves nothing; if ``step`` starts a backward pass, the step ends there.
    """
    saved = dict.fromkeys(blocks, 0)
    permanent: set[StorageWeakRef] = set()
    entered: list[tuple[nn.Module, set[StorageWeakRef]]] = []

    def enter(block: nn.Module) -> None:
        permanent.update(_storage_of(tensor) for tensor in _permanent_tensors(block))
        entered.append((block, set()))

    def count(tensor: torch.Tensor) -> None:
        if not entered:
            return
        storage, (block, counted) = _storage_of(tensor), entered[-1]
        if storage not in permanent and storage not in counted:
            counted.add(storage)
            saved[block] += tensor.untyped_storage().nbytes()

    with (
        suppress(BackwardReachedError),
        _block_hooks(blocks, enter, lambda: entered.pop()),
        torch.autograd.graph.saved_tensors_hooks(count, _stop_backward),
    ):
        step()
    return saved


def _storage_of(tensor: torch.Tensor) -> StorageWeakRef:
    """Return a weak reference that identifies a tensor's memory.

    The memory may be freed meanwhile; a new tensor at the same address is a different one.
    """
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _permanent_tensors(block: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a block's weights and the copies of them that its layers have during a step."""
    yield from block.parameters()
    for layer in block.modules():
        fp8_weight = fp8_weight_of(layer)
        if fp8_weight is not None:
            yield from fp8_weight
        if isinstance(layer, LoraWrapper) and layer.fused_factors is not None:
            factors = layer.fused_factors
            tensors = (factors.down, factors.up, factors.shared_down)
            yield from (tensor for tensor in tensors if tensor is not None)


@contextmanager
def _block_hooks(
    blocks: Sequence[nn.Module], enter: Callable[[nn.Module], None], leave: Callable[[], object]
) -> Iterator[None]:
    """Call ``enter`` before and ``leave`` after each block's forward pass."""

    def after(*_: Any) -> None:
        leave()

    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda block, _: enter(block)))
        hooks.append(block.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stop_backward(_: Any) -> torch.Tensor:
    raise BackwardReachedError


def bisect_min(count: int, fits: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 0 to ``count`` that fits, where larger ones fit better.

    None if none does. Tries about log2(count) of them.
    """
    if fits(0):
        return 0
    if not fits(count):
        return None
    low, high = 0, count  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
