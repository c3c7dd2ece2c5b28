"""A network in training together with its optimizer and its average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import Tensors
from lorasmith.loops.ema import Ema
from lorasmith.loops.optimization.optimizer_state import (
    pack_optimizer_state,
    unpack_optimizer_state,
)


@dataclass
class OptimizedModule:
    """A network with its optimizer and its average, which are stepped and saved together."""

    module: nn.Module
    """The network itself."""
    prepared: nn.Module
    """The network as accelerate prepared it: with autocast, and over several processes."""
    optimizer: torch.optim.Optimizer
    learning_rate: float
    """The peak learning rate."""
    ema: Ema | None
    """The averaged weights, if any."""

    def clip_and_step(self, max_norm: float, scaler: torch.amp.GradScaler | None) -> torch.Tensor:
        """Clip the gradients, take a step, update the average; return the gradients' norm.

        The caller updates the scaler, once after the steps of all networks.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), max_norm).detach()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return norm

    def pack_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the state for a checkpoint, as tensors and JSON."""
        packed, plain = pack_optimizer_state(self.optimizer)
        packed |= {f"module/{k}": v for k, v in self.module.state_dict().items()}
        if self.ema is not None:
            packed |= {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        return packed, plain

    def unpack_state(self, tensors: Mapping[str, torch.Tensor], plain: dict[str, Any]) -> None:
        """Restore the result of `pack_state`.

        Raises:
            WeightsError: it is of another network or other settings.
        """
        try:
            self.module.load_state_dict(select_prefix("module/", tensors))
            if self.ema is not None:
                self.ema.load_state_dict(select_prefix("ema/", tensors))
            unpack_optimizer_state(
                self.optimizer, select_prefix("optimizer/", tensors, keep=True), plain
            )
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"the checkpoint does not fit these settings ({reason})") from error


def select_prefix(prefix: str, tensors: Mapping[str, torch.Tensor], keep: bool = False) -> Tensors:
    """Return the tensors whose names start with a prefix, without it unless ``keep``."""
    cut = 0 if keep else len(prefix)
    return {name[cut:]: value for name, value in tensors.items() if name.startswith(prefix)}
