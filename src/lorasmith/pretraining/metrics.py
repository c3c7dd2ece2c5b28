"""Metrics of pretraining steps, kept on the device until they are logged."""

import math
from typing import Any

import torch

from lorasmith.core.errors import TrainingError


class StepMetrics:
    """Named scalars of the last step: means over its microbatches, in order of appearance."""

    def __init__(self) -> None:
        self._last: dict[str, torch.Tensor] = {}
        self._current: dict[str, torch.Tensor] = {}

    def begin_step(self) -> None:
        self._current = {}

    def add(self, weight: float, **metrics: torch.Tensor) -> None:
        """Add scalars of a microbatch, multiplied by its weight."""
        for name, value in metrics.items():
            share = value.detach() * weight
            self._current[name] = self._current[name] + share if name in self._current else share

    def end_microbatches(self) -> None:
        """Replace the last step's scalars by the current step's."""
        self._last |= self._current

    def set(self, name: str, value: torch.Tensor) -> None:
        """Set a scalar of the full step."""
        self._last[name] = value

    def read(self, name: str) -> float:
        """Return one scalar of this process; this waits for the device."""
        return float(self._last[name])

    def read_all(self, step: int, accelerator: Any) -> dict[str, float]:
        """Return all scalars, averaged over processes.

        Raises:
            TrainingError: one is not finite.
        """
        values = torch.stack([value.float() for value in self._last.values()])
        if accelerator.num_processes > 1:
            values = accelerator.reduce(values, reduction="mean")
        metrics = dict(zip(self._last, values.tolist(), strict=True))
        # Under fp16 a gradient norm may overflow: the loss scaler skips that step.
        has_scaler = accelerator.scaler is not None
        for name, value in metrics.items():
            may_overflow = has_scaler and name.startswith("grad_norm")
            if not math.isfinite(value) and not may_overflow:
                raise TrainingError(
                    f"{name} is not finite at step {step}; the last checkpoint is intact: lower "
                    "train.learning_rate or raise train.lr_warmup_steps, and --resume"
                )
        return metrics
