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
        self._live = [p for p in module.parameters() if p.requires_grad]
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.shadow_params = [p.detach().float().clone() for p in self._live]
        # On the device, so that an update can be part of a CUDA graph.
        self._updates = torch.zeros((), device=self._live[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        warm = (1.0 + self._updates) / (10.0 + self._updates)
        share = 1.0 - warm.clamp(max=self.decay)
        self._updates += 1
        moves = torch._foreach_sub([p.detach().float() for p in self._live], self.shadow_params)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self.shadow_params, moves)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Put the averaged weights into the module while the block runs."""
        kept = [p.detach().clone() for p in self._live]
        self._copy_in(self.shadow_params)
        try:
            yield
        finally:
            self._copy_in(kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the average by parameter name, plus the number of updates."""
        state = dict(zip(self._names, self.shadow_params, strict=True))
        return {**state, "__updates__": self._updates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self._updates.copy_(state["__updates__"])
        for name, tensor in zip(self._names, self.shadow_params, strict=True):
            tensor.copy_(state[name])

    @torch.no_grad()
    def _copy_in(self, tensors: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._live, tensors, strict=True):
            parameter.copy_(tensor)
