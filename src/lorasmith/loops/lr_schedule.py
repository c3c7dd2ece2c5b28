"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal

from lorasmith.core.errors import ConfigError

ScheduleKind = Literal["constant", "linear", "cosine"]


def resolve_warmup_steps(warmup: int | float, total: int) -> int:
    """Return a warm-up in steps; a number below 1 is a share of all steps."""
    return round(warmup * total) if 0 < warmup < 1 else int(warmup)


def lr_factor(
    step: int, total: int, warmup: int, min_ratio: float, schedule: ScheduleKind = "cosine"
) -> float:
    """Return the factor on the learning rate for optimizer step ``step`` (from 0).

    It rises linearly over ``warmup`` steps, then stays, or falls to ``floor`` at step ``total``
    in a straight line or half a cosine.

    Raises:
        ConfigError: ``floor`` outside 0..1 or a negative ``warmup``.
    """
    if not 0.0 <= min_ratio <= 1.0:
        raise ConfigError(f"the learning rate's floor must be between 0 and 1, not {min_ratio}")
    if warmup < 0:
        raise ConfigError(f"warm-up steps cannot be negative ({warmup})")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    falling = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return min_ratio + (1.0 - min_ratio) * falling
