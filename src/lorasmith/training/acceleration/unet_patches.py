"""A U-Net at full speed during a training step, and unchanged otherwise.

Generating images and measuring use the network as diffusers wrote it, so that their results do not
depend on how it was trained. (Where kernels are used, the convolutions' weights stay in the
channels-last memory format that training needs, which changes the rounding of generated images.)
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import is_out_of_memory
from lorasmith.ops.triton_kernels.support import is_available
from lorasmith.training.acceleration import resnets
from lorasmith.training.acceleration.attention import attention_patch
from lorasmith.training.acceleration.compile import CompiledBlocks
from lorasmith.training.acceleration.feed_forward import feed_forward_patch, geglu_patch
from lorasmith.training.acceleration.fp8_linear import fp8_patch
from lorasmith.training.acceleration.module_patch import ModulePatch, patched, supported_patches
from lorasmith.training.acceleration.transformer_block import transformer_block_patch

logger = logging.getLogger(__name__)


class UNetPatcher:
    """The patches of a U-Net that apply during a training step."""

    def __init__(self, unet: nn.Module, fp8: bool = False) -> None:
        """Choose the patches.

        Args:
            unet: the U-Net, on the device where it is trained.
            fp8: whether its large frozen layers compute in FP8.
        """
        self._unet = unet
        self._device = next(unet.parameters()).device
        has_kernels = is_available(self._device)
        if has_kernels:
            resnets.convert_to_channels_last(unet)
        always, if_eager = [], []
        if has_kernels or self._device.type == "cuda":  # on a CPU it costs more than it saves
            always.append(attention_patch())
        if has_kernels:
            always.append(geglu_patch())
            if_eager = [*resnets.resnet_patches(unet), transformer_block_patch()]
            if_eager.append(feed_forward_patch())
        if fp8:
            always.append(fp8_patch(unet))
        self._patches = supported_patches([*always, *if_eager])
        self._if_eager = if_eager
        self._compiled: CompiledBlocks | None = None
        self._has_run = False

    def compile(self) -> None:
        """Compile the network's blocks when the next step uses them."""
        self._compiled = CompiledBlocks(self._unet)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Use the patches for the time of the block."""
        with patched(self._unet, self._active_patches()):
            yield

    @contextmanager
    def fallback_to_eager(self, retry: Callable[[], None]) -> Iterator[None]:
        """If compiled code fails in the block, stop using it and call ``retry``."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            if self._compiled is None or is_out_of_memory(error) or self._is_capturing():
                raise
            self._compiled = None
            reason = " ".join(str(error).split())[:160]
            warnings.warn(
                f"the U-Net's blocks could not be compiled and run uncompiled: {reason}",
                LorasmithWarning,
                stacklevel=2,
            )
            retry()
            return
        if self._compiled is not None and not self._has_run:
            self._has_run = True
            logger.info("compiled in %.0f s", time.perf_counter() - started)

    def _active_patches(self) -> list[ModulePatch]:
        if self._compiled is None:
            return self._patches
        # The compiler generates its own kernels for these modules.
        others = [patch for patch in self._patches if patch not in self._if_eager]
        return [*others, *self._compiled.patches]

    def _is_capturing(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
