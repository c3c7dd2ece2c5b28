"""Compiling the blocks of a U-Net: what lies between matrix products is done at once."""

import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from lorasmith.data.cache.tensor_cache import default_cache_dir

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers that are compiled. Many blocks share the code of one, which is why they
are compiled one by one rather than the whole network."""
_VARIANTS = 64
"""Shapes of one class that are compiled at most."""


def iter_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that can be compiled."""
    return (one for one in network.modules() if type(one).__name__ in _BLOCKS)


class CompiledBlocks:
    """The compiled blocks of a network, which are in place between ``on`` and ``off``.

    Each is compiled when it is first called; what the compiler made is kept in the cache folder
    for later runs.
    """

    def __init__(self, network: nn.Module) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache_dir() / "compiled"))
        torch._dynamo.config.recompile_limit = _VARIANTS
        torch._dynamo.config.accumulated_recompile_limit = 8 * _VARIANTS
        cast("Any", network).to(
            memory_format=torch.channels_last
        )  # what compiled convolutions are best at
        self._calls = []
        for block in iter_blocks(network):
            block.compile(dynamic=False)
            self._calls.append((block, block._compiled_call_impl))
        self.revert_patch()

    def apply_patch(self) -> None:
        """Run the compiled blocks."""
        for block, call in self._calls:
            block._compiled_call_impl = call

    def revert_patch(self) -> None:
        """Run the blocks as they are written."""
        for block, _ in self._calls:
            block._compiled_call_impl = None
