"""Compiling the blocks of a U-Net, which fuses what lies between matrix products."""

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from lorasmith.data.cache.tensor_cache import default_cache_dir
from lorasmith.training.acceleration.module_patch import ModulePatch

_MAX_VARIANTS = 64
"""Input shapes for which the code of one class is compiled."""


def iter_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the transformer and residual blocks of a U-Net.

    They are compiled and checkpointed one by one: many blocks share the code of one class.
    """
    classes = _block_classes()
    return (module for module in network.modules() if isinstance(module, classes))


class CompiledBlocks:
    """Compiled versions of a network's blocks, to use as patches.

    Each is compiled when it is first called; the compiler keeps its results in the cache folder
    for later runs.
    """

    def __init__(self, network: nn.Module) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache_dir() / "compiled"))
        torch._dynamo.config.recompile_limit = _MAX_VARIANTS
        torch._dynamo.config.accumulated_recompile_limit = 8 * _MAX_VARIANTS
        # Compiled convolutions are fastest with channels last.
        cast("Any", network).to(memory_format=torch.channels_last)
        self._calls: dict[nn.Module, Callable[..., Any]] = {}
        for block in iter_blocks(network):
            block.compile(dynamic=False)
            self._calls[block] = cast("Callable[..., Any]", block._compiled_call_impl)
            block._compiled_call_impl = None

    @property
    def patches(self) -> list[ModulePatch]:
        return [
            ModulePatch(
                source=kind,
                replacement=kind,
                predicate=lambda block: block in self._calls,
                attributes=lambda block: {"_compiled_call_impl": self._calls[block]},
            )
            for kind in _block_classes()
        ]


def _block_classes() -> tuple[type[nn.Module], ...]:
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    return BasicTransformerBlock, ResnetBlock2D
