"""A U-Net at full speed while a training step works with it, and as it is written otherwise.

Drawing and measuring always use the network as it is written: what they give must not depend on
how it was trained.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from lorasmith.adapters import eight_bit
from lorasmith.core.errors import LorasmithWarning
from lorasmith.core.kernels import available
from lorasmith.loops.memory import ran_out
from lorasmith.loops.progress import tell
from lorasmith.training import attention, feed_forward, geglu, resnets, transformer_blocks
from lorasmith.training.compiling import Compiled


class Swift:
    """What is exchanged in a network for the time of a step."""

    def __init__(self, network: nn.Module, compiled: bool = False, fp8: bool = False) -> None:
        """Prepare it.

        Args:
            network: the U-Net, on the device where it is trained.
            compiled: whether its blocks are to be compiled when a step first uses them.
            fp8: whether its large frozen layers multiply in 8 bits.
        """
        self._network = network
        self._ways = [(attention.use_swift, attention.use_own)]
        if available(next(network.parameters()).device):
            self._ways.append((geglu.use_kernels, geglu.use_own))
            if not compiled:  # a compiler makes kernels of its own for these
                self._ways.append((resnets.use_kernels, resnets.use_own))
                self._ways.append((transformer_blocks.use_kernels, transformer_blocks.use_own))
                self._ways.append((feed_forward.use_kernels, feed_forward.use_own))
                resnets.channels_last(network)
        self._eights = eight_bit.Exchanged(network) if fp8 else None
        self._compiled = Compiled(network) if compiled else None
        self._worked = False

    @contextmanager
    def surviving(self, again: Callable[[], None]) -> Iterator[None]:
        """Do the block's work again without compiling where that fails, and from then on."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            if self._compiled is None or self._worked or ran_out(error):
                raise
            self._compiled = None
            reason = " ".join(str(error).split())[:160]
            warnings.warn(
                f"the U-Net's blocks could not be compiled and run as they are: {reason}",
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
        for use, _ in self._ways:
            use(self._network)
        for one in self._exchanged():
            one.on()
        try:
            yield
        finally:
            for one in self._exchanged():
                one.off()
            for _, use_own in self._ways:
                use_own(self._network)

    def _exchanged(self) -> Iterator[eight_bit.Exchanged | Compiled]:
        return (one for one in (self._eights, self._compiled) if one is not None)
