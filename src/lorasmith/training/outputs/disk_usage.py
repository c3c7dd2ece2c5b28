"""How much of the disk a run will take."""

from collections.abc import Sequence

from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.adapters.targeting.targets import LayerTarget
from lorasmith.config.train_config import TrainConfig
from lorasmith.inference.options import parse_size
from lorasmith.registries import OPTIMIZERS

_SLACK = 16 * 2**20
"""For the log, event files and the report."""


def count_parameters(targets: Sequence[LayerTarget]) -> int:
    """Return how many numbers the adapters of some layers have."""
    total = 0
    for target in targets:
        weight = layer_weight(target.ref.layer)
        total += target.rank * (weight[0].numel() + weight.shape[0])
    return total


def bytes_needed(run: TrainConfig, targets: Sequence[LayerTarget], side: int, new: bool) -> int:
    """Return the bytes that a run's checkpoints, LoRA files and previews take at most.

    Args:
        run: its settings.
        targets: the layers that get an adapter.
        side: of a preview picture whose size is left open, in pixels.
        new: False for a run that is gone on with, whose older checkpoints are there already.
    """
    train, numbers = run.train, count_parameters(targets)
    started = run.lora.init in ("compensated", "pissa")
    copies = 1 + started + (train.ema_decay > 0) + OPTIMIZERS.get(train.optimizer).moments
    # One more than is kept: the oldest goes when the newest has been verified.
    checkpoints = (train.keep_checkpoints if new else 0) + 1
    files = 2 + (train.steps // train.save_every_n_steps if train.save_every_n_steps else 0)
    return (
        checkpoints * copies * 4 * numbers
        + files * (1 + started) * 2 * numbers
        + _previews(run, side)
        + _SLACK
    )


def _previews(run: TrainConfig, side: int) -> int:
    settings = run.validation
    if settings.every_n_steps == 0:
        return 0
    width, height = (side, side) if settings.size is None else parse_size(settings.size)
    count = settings.num_images if settings.prompts is None else len(settings.prompts)
    return (run.train.steps // settings.every_n_steps + 2) * count * width * height * 3
