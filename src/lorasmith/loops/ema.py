"""An exponential moving average of a module's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Averaged copies of a module's parameters, on their device, in float32.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that short runs
    are not dominated by the random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = [p for p in module.parameters() if p.requires_grad]
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.average = [p.detach().float().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = [p.detach().float() for p in self._live]
        torch._foreach_lerp_(self.average, live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the module while the block runs."""
        kept = [p.detach().clone() for p in self._live]
        self._copy_in(self.average)
        try:
            yield
        finally:
            self._copy_in(kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the average by parameter name, plus the number of updates."""
        state = dict(zip(self._names, self.average, strict=True))
        return {**state, "__updates__": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.updates = int(state["__updates__"])
        for name, tensor in zip(self._names, self.average, strict=True):
            tensor.copy_(state[name])

    @torch.no_grad()
    def _copy_in(self, tensors: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._live, tensors, strict=True):
            parameter.copy_(tensor)
