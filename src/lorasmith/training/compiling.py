"""Compiling the blocks of a U-Net, so that what lies between its matrix products is done at once."""

import os
from collections.abc import Iterator

import torch
from torch import nn

from lorasmith.data.cache import cache_folder

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers that are compiled. Many blocks share the code of one, which is why they
are compiled one by one rather than the whole network."""
_VARIANTS = 64
"""Shapes of one class that are compiled at most."""


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that can be compiled."""
    return (one for one in network.modules() if type(one).__name__ in _BLOCKS)


def compile_blocks(network: nn.Module) -> None:
    """Compile a network's blocks, each when it is first called."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    torch._dynamo.config.recompile_limit = _VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 8 * _VARIANTS
    for block in blocks_of(network):
        block.compile(dynamic=False)


def uncompile_blocks(network: nn.Module) -> None:
    """Run the blocks as they are written again."""
    for block in blocks_of(network):
        block._compiled_call_impl = None
