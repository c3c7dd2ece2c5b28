"""Which learning rate a run has where its settings leave it open."""

from lorasmith.config.train_settings import TrainerConfig

MINIATURE_PARAMETERS = 100_000_000
"""A U-Net with fewer parameters counts as a miniature; that of SD 1.x has 860 million."""

_ADAMW = {True: 6e-3, False: 1e-4}
"""Peak learning rates of AdamW for miniatures and for full-size models."""

_SHARE = {"lion": 0.25}
"""What some optimizers want of AdamW's rate: Lion's steps are larger (arXiv:2302.06675)."""


def fill_learning_rates(settings: TrainerConfig, unet_parameters: int) -> TrainerConfig:
    """Fill in the learning rates that were left out, for a model of this size.

    Prodigy finds its own rate and wants 1. Text encoders learn at half the rate of the U-Net,
    unless the optimizer has one rate for all.
    """
    alone = settings.optimizer == "prodigy"
    fallback = _ADAMW[unet_parameters < MINIATURE_PARAMETERS] * _SHARE.get(settings.optimizer, 1.0)
    rate = settings.learning_rate or (1.0 if alone else fallback)
    text = settings.text_encoder_lr or (rate if alone else 0.5 * rate)
    return settings.model_copy(update={"learning_rate": rate, "text_encoder_lr": text})
