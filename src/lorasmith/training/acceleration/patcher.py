"""A U-Net at full speed while a training step works with it, and as it is written otherwise.

Drawing and measuring always use the network as it is written: what they give must not depend on
how it was trained. (Where there are kernels, the weights of convolutions stay in the order in
memory that steps want, by which drawings are rounded otherwise.)
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lorasmith.core.errors import LorasmithWarning
from lorasmith.loops.memory import is_out_of_memory
from lorasmith.loops.progress import tell
from lorasmith.ops import fp8 as fp8_ops
from lorasmith.ops import geglu
from lorasmith.ops.triton_support import is_available
from lorasmith.training.acceleration import attention, feed_forward, resnets, transformer_block
from lorasmith.training.acceleration.compile import CompiledBlocks

_Way = Callable[[nn.Module], None]


class UNetPatcher:
    """What is exchanged in a network for the time of a step."""

    def __init__(self, network: nn.Module, fp8: bool = False) -> None:
        """Prepare it.

        Args:
            network: the U-Net, on the device where it is trained.
            fp8: whether its large frozen layers multiply in 8 bits.
        """
        self._network = network
        self._device = next(network.parameters()).device
        self._kernels = is_available(self._device)
        if self._kernels:
            resnets.channels_last(network)
        self._eights = fp8_ops.Fp8Patcher(network) if fp8 else None
        self._compiled: CompiledBlocks | None = None
        self._worked = False

    def compile(self) -> None:
        """Let the network's blocks be compiled when a step next uses them."""
        self._compiled = CompiledBlocks(self._network)

    @contextmanager
    def fallback_to_eager(self, again: Callable[[], None]) -> Iterator[None]:
        """Do the block's work again without compiling where that fails, and from then on."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            if self._compiled is None or is_out_of_memory(error) or self._is_recording():
                raise
            self._compiled = None
            reason = " ".join(str(error).split())[:160]
            warnings.warn(
                f"the U-Net's blocks could not be compiled and run without that: {reason}",
                LorasmithWarning,
                stacklevel=2,
            )
            again()
            return
        if self._compiled is not None and not self._worked:
            self._worked = True
            tell(f"compiled in {time.perf_counter() - started:.0f} s")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Use the fast ways while the block runs."""
        with ExitStack() as behind:
            for use, use_own in self._ways():
                behind.callback(use_own, self._network)
                use(self._network)
            for one in (self._eights, self._compiled):
                if one is not None:
                    one.apply_patch()
                    behind.callback(one.revert_patch)
            yield

    def _ways(self) -> Iterator[tuple[_Way, _Way]]:
        """Yield what is exchanged by class, and what takes that back."""
        if self._kernels or self._device.type == "cuda":  # elsewhere it saves less than it costs
            yield attention.use_swift, attention.use_own
        if not self._kernels:
            return
        yield geglu.use_kernels, geglu.use_own
        if self._compiled is None:  # a compiler makes kernels of its own for these
            yield resnets.use_kernels, resnets.use_own
            yield transformer_block.use_kernels, transformer_block.use_own
            yield feed_forward.use_kernels, feed_forward.use_own

    def _is_recording(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
