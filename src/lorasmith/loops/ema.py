"""An exponential moving average of a module's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Averages of a module's trainable parameters, on their device, in float32.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the random
    start does not dominate short runs.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._params = [p for p in module.parameters() if p.requires_grad]
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.shadow_params = [p.detach().float().clone() for p in self._params]
        # On the device, so that a CUDA graph can contain updates.
        self._updates = torch.zeros((), device=self._params[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the current weights."""
        warmed_up = (1.0 + self._updates) / (10.0 + self._updates)
        step_size = 1.0 - warmed_up.clamp(max=self.decay)
        self._updates += 1
        differences = torch._foreach_sub(
            [p.detach().float() for p in self._params], self.shadow_params
        )
        torch._foreach_mul_(differences, step_size)
        torch._foreach_add_(self.shadow_params, differences)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Use the averaged weights in the module while the block runs."""
        backup = [p.detach().clone() for p in self._params]
        self._copy_to_module(self.shadow_params)
        try:
            yield
        finally:
            self._copy_to_module(backup)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averages by parameter name, and the number of updates."""
        state = dict(zip(self._names, self.shadow_params, strict=True))
        return {**state, "__updates__": self._updates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the result of `state_dict`."""
        self._updates.copy_(state["__updates__"])
        for name, tensor in zip(self._names, self.shadow_params, strict=True):
            tensor.copy_(state[name])

    @torch.no_grad()
    def _copy_to_module(self, tensors: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._params, tensors, strict=True):
            parameter.copy_(tensor)
