"""Which blocks of a U-Net keep their activations for the backward pass, and which compute again.

A plan is a number of blocks that compute twice, those that would keep most first. It is tried with
the largest batch of the run: what a step needs depends on too much to be foretold.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorasmith.training.compiling import blocks_of


class Recomputing:
    """The blocks of a U-Net that compute again what they did not keep."""

    def __init__(self, unet: Any, drops_out: bool = False) -> None:
        """Take a network in hand; for now all of its blocks keep what they need.

        Args:
            unet: the U-Net, whose class in diffusers asks about every block.
            drops_out: whether adapters draw random numbers, which must be the same again.
        """
        self.blocks = list(blocks_of(unet))
        self._chosen: set[nn.Module] = set()
        self._drops_out = drops_out
        unet.enable_gradient_checkpointing(self._call)

    def __len__(self) -> int:
        return len(self._chosen)

    def choose(self, blocks: list[nn.Module]) -> None:
        """Let these blocks compute again, and no others."""
        self._chosen = set(blocks)

    def choose_all(self) -> None:
        """Let every block compute again."""
        self.choose(self.blocks)

    def by_size(self, work: Callable[[], object]) -> list[nn.Module]:
        """Return the blocks in the order of what each keeps for its backward pass, the most first.

        None of them computes again afterwards: what those keep that do could not be seen.

        Args:
            work: runs a forward pass; nothing is kept of it.
        """
        self.choose([])
        return _by_size(self.blocks, work)

    def _call(self, block: nn.Module, *given: Any) -> Any:
        if block not in self._chosen:
            return block(*given)
        # A recorded step cannot keep the state of random numbers, and without dropout need not.
        return checkpoint(
            block.__call__, *given, use_reentrant=False, preserve_rng_state=self._drops_out
        )


def _by_size(blocks: list[nn.Module], work: Callable[[], object]) -> list[nn.Module]:
    """Order blocks, none within another, by what a forward pass makes each of them keep."""
    kept = dict.fromkeys(blocks, 0)
    weights = {one.data_ptr() for block in blocks for one in block.parameters()}
    inside: list[tuple[nn.Module, set[int]]] = []

    def count(tensor: torch.Tensor) -> None:
        address = tensor.data_ptr()
        if inside and address not in weights and address not in inside[-1][1]:
            inside[-1][1].add(address)
            kept[inside[-1][0]] += tensor.nbytes

    with (
        _watching(blocks, inside),
        torch.autograd.graph.saved_tensors_hooks(count, _never),
    ):
        work()
    return sorted(blocks, key=lambda one: -kept[one])


@contextmanager
def _watching(blocks: list[nn.Module], inside: list[tuple[nn.Module, set[int]]]) -> Iterator[None]:
    """Keep account of which block is at work."""
    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda own, _: inside.append((own, set()))))
        hooks.append(block.register_forward_hook(lambda *_: (inside.pop(), None)[1]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _never(_: Any) -> torch.Tensor:
    raise RuntimeError("nothing was kept of this pass")


def fewest(count: int, fits: Callable[[int], bool]) -> int | None:
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
