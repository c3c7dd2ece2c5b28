"""Which blocks of a U-Net keep their activations for the backward pass, and which compute again.

A plan is a number of blocks that compute twice, those that would keep most first. It is tried with
the largest batch of the run: what a step needs depends on too much to be foretold.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.ops.fp8 import Fp8Linear
from lorasmith.training.acceleration.compile import iter_blocks


class ActivationCheckpointer:
    """The blocks of a U-Net that compute again what they did not keep."""

    def __init__(self, unet: Any, drops_out: bool = False) -> None:
        """Take a network in hand; for now all of its blocks keep what they need.

        Args:
            unet: the U-Net, whose class in diffusers asks about every block.
            drops_out: whether adapters draw random numbers, which must be the same again.
        """
        self.blocks = list(iter_blocks(unet))
        self._chosen: set[nn.Module] = set()
        self._drops_out = drops_out
        unet.enable_gradient_checkpointing(self._call)

    def __len__(self) -> int:
        return len(self._chosen)

    def select(self, blocks: list[nn.Module]) -> None:
        """Let these blocks compute again, and no others."""
        self._chosen = set(blocks)

    def select_all(self) -> None:
        """Let every block compute again."""
        self.select(self.blocks)

    def sort_by_saved_bytes(self, work: Callable[[], object]) -> list[nn.Module]:
        """Return the blocks in the order of what each keeps for its backward pass, the most first.

        None of them computes again afterwards: what those keep that do could not be seen.

        Args:
            work: runs a forward pass; nothing is kept of it.
        """
        self.select([])
        kept = measure_saved_bytes(self.blocks, work)
        return sorted(self.blocks, key=lambda one: -kept[one])

    def _call(self, block: nn.Module, *given: Any) -> Any:
        if block not in self._chosen:
            return block(*given)
        # A recorded step cannot keep the state of random numbers, and without dropout need not.
        return checkpoint(
            block.__call__, *given, use_reentrant=False, preserve_rng_state=self._drops_out
        )


def measure_saved_bytes(
    blocks: list[nn.Module], work: Callable[[], object]
) -> dict[nn.Module, int]:
    """Return how many bytes a forward pass makes each of some blocks keep, none within another."""
    kept = dict.fromkeys(blocks, 0)
    anyway: set[StorageWeakRef] = set()
    inside: list[tuple[nn.Module, set[StorageWeakRef]]] = []

    def enter(block: nn.Module) -> None:
        anyway.update(_memory_of(one) for one in _there_anyway(block))
        inside.append((block, set()))

    def count(tensor: torch.Tensor) -> None:
        memory = _memory_of(tensor)
        if inside and memory not in anyway and memory not in inside[-1][1]:
            inside[-1][1].add(memory)
            kept[inside[-1][0]] += tensor.untyped_storage().nbytes()

    with (
        _watching(blocks, enter, lambda: inside.pop()),
        torch.autograd.graph.saved_tensors_hooks(count, _never),
    ):
        work()
    return kept


def _memory_of(tensor: torch.Tensor) -> StorageWeakRef:
    """Return what stands for a tensor's memory. It lets go of the memory, whose address may then be
    another tensor's, and is told apart from that one's.
    """
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _there_anyway(block: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a block's weights, and the copies of them that layers have while a step is at work."""
    yield from block.parameters()
    for one in block.modules():
        if isinstance(one, Fp8Linear):
            yield from one.fp8_weight
        elif isinstance(one, LoraWrapper) and one.fused_factors is not None:
            own = (one.fused_factors.down, one.fused_factors.up, one.fused_factors.shared)
            yield from (tensor for tensor in own if tensor is not None)


@contextmanager
def _watching(
    blocks: list[nn.Module], enter: Callable[[nn.Module], None], leave: Callable[[], object]
) -> Iterator[None]:
    """Call these before and after each block's work."""
    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda own, _: enter(own)))
        hooks.append(block.register_forward_hook(lambda *_: (leave(), None)[1]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _never(_: Any) -> torch.Tensor:
    raise RuntimeError("nothing was kept of this pass")


def bisect_min(count: int, fits: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 0 to ``count`` that fits, where larger ones fit better.

    None where none does. Tries about log2(count) of them.
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
