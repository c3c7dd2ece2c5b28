"""Which learning rate a run has where its settings leave it open."""

from lorasmith.config.optimization import TrainerConfig
from lorasmith.loops.optimization.optimizers import OptimizerSpec
from lorasmith.registries import OPTIMIZERS

MINIATURE_PARAMETERS = 100_000_000
"""A U-Net with fewer parameters counts as a miniature; that of SD 1.x has 860 million."""

_ADAMW = {True: 6e-3, False: 1e-4}
"""Peak learning rates of AdamW for miniatures and for full-size models."""


def fill_learning_rates(settings: TrainerConfig, unet_parameters: int) -> TrainerConfig:
    """Fill in the learning rates that were left out, for a model of this size.

    Optimizers say what they expect relative to AdamW. Text encoders learn at half the rate of the
    U-Net, unless the optimizer has one rate for all.
    """
    spec: OptimizerSpec = OPTIMIZERS.get(settings.optimizer)
    adamw_lr = _ADAMW[unet_parameters < MINIATURE_PARAMETERS]
    default_lr = spec.default_lr or adamw_lr * spec.lr_multiplier
    lr = settings.learning_rate or default_lr
    text_lr = settings.text_encoder_lr or (lr if spec.has_single_lr else 0.5 * lr)
    return settings.model_copy(update={"learning_rate": lr, "text_encoder_lr": text_lr})
