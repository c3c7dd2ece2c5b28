"""What can be added to lorasmith, one registry for each kind of thing.

Built-in items are named here and implemented in the module behind the name. ``CONTRIBUTING.md``
says what an item of each kind looks like.
"""

from typing import Any

from lorasmith.core.registry import Registry

TRAINING_METHODS: Registry[Any] = Registry("training method", "training_methods")
SAMPLERS: Registry[Any] = Registry("sampler", "samplers")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "optimizers")
LR_SCHEDULERS: Registry[Any] = Registry("learning rate schedule", "lr_schedulers")
LOSS_WEIGHTINGS: Registry[Any] = Registry("loss weighting", "loss_weightings")
ADAPTER_INITS: Registry[Any] = Registry("adapter initialisation", "adapter_inits")
ADAPTER_KINDS: Registry[Any] = Registry("adapter kind", "adapter_kinds")
MODEL_FAMILIES: Registry[Any] = Registry("model family", "model_families")
CAPTION_SOURCES: Registry[Any] = Registry("caption source", "caption_sources")
DATASET_RULES: Registry[Any] = Registry("dataset rule", "dataset_rules")
REPORT_SECTIONS: Registry[Any] = Registry("report section", "report_sections")
