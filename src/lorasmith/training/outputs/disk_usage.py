"""How much of the disk a run takes."""

from lorasmith.config.lora import LoraConfig
from lorasmith.config.optimization import TrainerConfig
from lorasmith.config.train_config import TrainConfig, ValidationConfig
from lorasmith.inference.options import parse_size
from lorasmith.loops.optimization.optimizers import OptimizerSpec
from lorasmith.registries import ADAPTER_INITS, OPTIMIZERS

_SLACK = 16 * 2**20
"""For the log, event files and the report."""


def bytes_needed(
    config: TrainConfig, num_parameters: int, default_image_size: int, is_new: bool
) -> int:
    """Return the bytes that a run's checkpoints, LoRA files and previews take at most.

    Args:
        config: its settings.
        num_parameters: how many parameters are trained.
        default_image_size: side of a preview whose size is not set, in pixels.
        is_new: False for a run that is resumed, whose older checkpoints are there already.
    """
    return (
        _checkpoint_bytes(config.train, config.lora, num_parameters, is_new)
        + _lora_file_bytes(config.train, config.lora, num_parameters)
        + _preview_bytes(config.validation, config.train.steps, default_image_size)
        + _SLACK
    )


def _has_frozen_start(lora: LoraConfig) -> bool:
    """Whether adapters keep a copy of their initial factors, which files hold as well."""
    return bool(ADAPTER_INITS.get(lora.init).subtracts_start)


def _checkpoint_bytes(
    train: TrainerConfig, lora: LoraConfig, num_parameters: int, is_new: bool
) -> int:
    spec: OptimizerSpec = OPTIMIZERS.get(train.optimizer)
    copies = 1 + _has_frozen_start(lora) + (train.ema_decay > 0) + spec.moments
    # One more than is kept: the oldest is removed when the newest has been verified.
    count = (train.keep_checkpoints if is_new else 0) + 1
    return count * copies * 4 * num_parameters


def _lora_file_bytes(train: TrainerConfig, lora: LoraConfig, num_parameters: int) -> int:
    count = 2 + (train.steps // train.save_every_n_steps if train.save_every_n_steps else 0)
    return count * (1 + _has_frozen_start(lora)) * 2 * num_parameters


def _preview_bytes(validation: ValidationConfig, steps: int, default_image_size: int) -> int:
    if validation.every_n_steps == 0:
        return 0
    width, height = (
        (default_image_size, default_image_size)
        if validation.size is None
        else parse_size(validation.size)
    )
    prompts = validation.prompts
    count = validation.num_images if prompts is None else len(prompts)
    return (steps // validation.every_n_steps + 2) * count * width * height * 3
