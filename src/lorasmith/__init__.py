"""lorasmith: train, evaluate, merge and use LoRAs for Stable Diffusion.

``import lorasmith`` is cheap: torch and diffusers are imported by the first call that needs them.

    import lorasmith
    pipe = lorasmith.load_pipeline()
    images = pipe("a red apple, noto style", seed=0)

    lora = lorasmith.train(
        {"data": {"path": "pictures", "tag": "ink"}, "output": {"name": "ink"}}
    )
    pipe.load_lora(lora, weight=0.8)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorasmith.core.version import VERSION

if TYPE_CHECKING:
    from lorasmith.adapters.api import InjectedLora, inject, save_lora
    from lorasmith.adapters.tools.file_operations import (
        WeightedLora,
        convert_lora,
        diff_loras,
        extract_lora,
        fuse_loras,
        lora_info,
        merge_loras,
        resize_lora,
    )
    from lorasmith.config.features import FeatureConfig, FeaturesConfig
    from lorasmith.config.lora import LoraConfig, LoraOverride
    from lorasmith.config.optimization import LossConfig, TrainerConfig
    from lorasmith.config.sweep import SweepConfig
    from lorasmith.config.train_config import (
        ModelConfig,
        OutputConfig,
        PreserveConfig,
        TrackConfig,
        TrainConfig,
        ValidationConfig,
    )
    from lorasmith.config.train_data import DataConfig
    from lorasmith.core.errors import (
        ConfigError,
        DataError,
        LorasmithError,
        LorasmithWarning,
        OutputError,
        TrainingError,
        WeightsError,
    )
    from lorasmith.evaluation.api import check, check_features
    from lorasmith.inference.pipeline import Pipeline, load_pipeline
    from lorasmith.training.api import sweep, train, train_features
    from lorasmith.training.callbacks import Callback
    from lorasmith.training.evaluation.evaluate import evaluate
    from lorasmith.training.losses import LossContext, capturable

__version__ = VERSION

__all__ = [
    "Callback", "ConfigError", "DataConfig", "DataError", "FeatureConfig", "FeaturesConfig",
    "InjectedLora", "LoraConfig", "LoraOverride", "LorasmithError", "LorasmithWarning",
    "LossConfig", "LossContext", "ModelConfig", "OutputConfig", "OutputError", "Pipeline",
    "PreserveConfig", "SweepConfig", "TrackConfig", "TrainConfig", "TrainerConfig", "TrainingError",
    "ValidationConfig", "WeightedLora", "WeightsError", "__version__", "capturable", "check",
    "check_features", "convert_lora", "diff_loras", "evaluate", "extract_lora", "fuse_loras",
    "inject", "load_pipeline", "lora_info", "merge_loras", "resize_lora", "save_lora", "sweep",
    "train", "train_features",
]  # fmt: skip

_OPERATIONS = "lorasmith.adapters.tools.file_operations"
_ERRORS = "lorasmith.core.errors"
_HOMES = {
    "InjectedLora": "lorasmith.adapters.api",
    "inject": "lorasmith.adapters.api",
    "save_lora": "lorasmith.adapters.api",
    "ConfigError": _ERRORS,
    "DataError": _ERRORS,
    "LorasmithError": _ERRORS,
    "LorasmithWarning": _ERRORS,
    "OutputError": _ERRORS,
    "TrainingError": _ERRORS,
    "WeightsError": _ERRORS,
    "WeightedLora": _OPERATIONS,
    "fuse_loras": _OPERATIONS,
    "convert_lora": _OPERATIONS,
    "diff_loras": _OPERATIONS,
    "extract_lora": _OPERATIONS,
    "lora_info": _OPERATIONS,
    "merge_loras": _OPERATIONS,
    "resize_lora": _OPERATIONS,
    "check": "lorasmith.evaluation.api",
    "check_features": "lorasmith.evaluation.api",
    "evaluate": "lorasmith.training.evaluation.evaluate",
    "Callback": "lorasmith.training.callbacks",
    "LossContext": "lorasmith.training.losses",
    "Pipeline": "lorasmith.inference.pipeline",
    "FeatureConfig": "lorasmith.config.features",
    "FeaturesConfig": "lorasmith.config.features",
    "LoraConfig": "lorasmith.config.lora",
    "LoraOverride": "lorasmith.config.lora",
    "SweepConfig": "lorasmith.config.sweep",
    "ModelConfig": "lorasmith.config.train_config",
    "OutputConfig": "lorasmith.config.train_config",
    "PreserveConfig": "lorasmith.config.train_config",
    "TrackConfig": "lorasmith.config.train_config",
    "TrainConfig": "lorasmith.config.train_config",
    "ValidationConfig": "lorasmith.config.train_config",
    "DataConfig": "lorasmith.config.train_data",
    "LossConfig": "lorasmith.config.optimization",
    "TrainerConfig": "lorasmith.config.optimization",
    "capturable": "lorasmith.training.losses",
    "load_pipeline": "lorasmith.inference.pipeline",
    "sweep": "lorasmith.training.api",
    "train": "lorasmith.training.api",
    "train_features": "lorasmith.training.api",
}
"""The modules of the public names."""


def __getattr__(name: str) -> Any:
    """Import public names when they are first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lorasmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
