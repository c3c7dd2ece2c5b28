"""Learning rate schedules.

A schedule is a function of the progress after the warm-up: 0 to 1 in, a factor of 1 to 0 out. It
is looked up in `lorasmith.registries.LR_SCHEDULERS`.
"""

import math
from collections.abc import Callable

from lorasmith.core.errors import ConfigError
from lorasmith.registries import LR_SCHEDULERS

LrSchedule = Callable[[float], float]
"""Maps the progress after the warm-up, 0 to 1, to a factor between 1 (the peak) and 0 (the end)."""


def constant(progress: float) -> float:
    """Stay at the peak."""
    del progress
    return 1.0


def linear(progress: float) -> float:
    """Fall in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Fall along half a cosine (arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def resolve_warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Return the warm-up in steps; a number below 1 is a share of all steps."""
    return round(warmup * total_steps) if 0 < warmup < 1 else int(warmup)


def lr_factor(
    step: int, total_steps: int, warmup_steps: int, min_ratio: float, schedule: str = "cosine"
) -> float:
    """Return the factor on the peak learning rate for optimizer step ``step`` (from 0).

    It rises linearly over ``warmup_steps``, then follows the schedule down to ``min_ratio`` at
    step ``total_steps``.

    Raises:
        ConfigError: ``min_ratio`` is outside 0..1, ``warmup_steps`` is negative, or no schedule
            has this name.
    """
    if not 0.0 <= min_ratio <= 1.0:
        raise ConfigError(f"lr_scheduler_min_lr_ratio must be between 0 and 1, not {min_ratio}")
    if warmup_steps < 0:
        raise ConfigError(f"lr_warmup_steps cannot be negative ({warmup_steps})")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    factor_of: LrSchedule = LR_SCHEDULERS.get(schedule)
    return min_ratio + (1.0 - min_ratio) * factor_of(progress)
