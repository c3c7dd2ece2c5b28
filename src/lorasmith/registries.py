"""What can be added to lorasmith, one registry for each kind of thing.

Built-in items are named here and implemented in the module behind the name. ``CONTRIBUTING.md``
says what an item of each kind looks like. The types of items live in the rooms that use them, which
import this module, so items are ``Any`` here.
"""

from collections.abc import Callable
from typing import Any

from lorasmith.core.registry import Registry

TRAINING_METHODS: Registry[Any] = Registry(
    "training method", "training_methods", {"lora": "lorasmith.training.methods:LORA"}
)
"""What ``train.method`` names: objects with the members of
`lorasmith.training.methods.TrainingMethod` (plan, inject, parameter_groups, export)."""
SAMPLERS: Registry[Any] = Registry(
    "sampler",
    "samplers",
    {
        "ddim": "lorasmith.inference.samplers:ddim",
        "ddpm": "lorasmith.inference.samplers:ddpm",
        "dpmpp_2m": "lorasmith.inference.samplers:dpmpp_2m",
        "dpmpp_2m_karras": "lorasmith.inference.samplers:dpmpp_2m_karras",
        "dpmpp_2m_sde": "lorasmith.inference.samplers:dpmpp_2m_sde",
        "dpmpp_2m_sde_karras": "lorasmith.inference.samplers:dpmpp_2m_sde_karras",
        "euler": "lorasmith.inference.samplers:euler",
        "euler_a": "lorasmith.inference.samplers:euler_a",
        "heun": "lorasmith.inference.samplers:heun",
        "unipc": "lorasmith.inference.samplers:unipc",
    },
)
"""`lorasmith.inference.samplers.Sampler`: a function from a model's scheduler config to a diffusers
scheduler."""
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    "optimizers",
    {
        "adamw": "lorasmith.loops.optimization.optimizers:ADAMW",
        "adamw8bit": "lorasmith.loops.optimization.optimizers:ADAMW_8BIT",
        "prodigy": "lorasmith.loops.optimization.optimizers:PRODIGY",
        "lion": "lorasmith.loops.optimization.optimizers:LION",
        "adafactor": "lorasmith.loops.optimization.optimizers:ADAFACTOR",
    },
)
"""A `lorasmith.loops.optimization.optimizers.OptimizerSpec`: ``OptimizerSpec(torch.optim.SGD)``."""
LR_SCHEDULERS: Registry[Callable[[float], float]] = Registry(
    "learning rate schedule",
    "lr_schedulers",
    {
        "constant": "lorasmith.loops.optimization.lr_schedule:constant",
        "linear": "lorasmith.loops.optimization.lr_schedule:linear",
        "cosine": "lorasmith.loops.optimization.lr_schedule:cosine",
    },
)
"""A function of the progress after the warm-up (0 to 1) that returns a factor (1 to 0)."""
LOSS_WEIGHTINGS: Registry[Any] = Registry(
    "loss weighting",
    "loss_weightings",
    {
        "min_snr": "lorasmith.training.losses:min_snr_weights",
        "constant": "lorasmith.training.losses:constant_weights",
    },
)
"""What ``train.loss.weighting`` names: functions of the noise schedule, timesteps int64 ``[B]`` and
the loss settings to a weight for each image, float32 ``[B]``; no value may be read on the host."""
ADAPTER_INITS: Registry[Any] = Registry(
    "adapter initialisation",
    "adapter_inits",
    {
        "gaussian": "lorasmith.adapters.nn.init:GAUSSIAN",
        "kaiming": "lorasmith.adapters.nn.init:KAIMING",
        "compensated": "lorasmith.adapters.nn.init:COMPENSATED",
        "pissa": "lorasmith.adapters.nn.init:PISSA",
    },
)
"""``lorasmith.adapters.nn.init.AdapterInit``: a function that draws an adapter's factors, and
whether their product is subtracted."""
ADAPTER_KINDS: Registry[Any] = Registry(
    "adapter kind",
    "adapter_kinds",
    {
        "lora": "lorasmith.adapters.kinds.lora:LoraLayer",
        "locon": "lorasmith.adapters.kinds.locon:LoconLayer",
        "loha": "lorasmith.adapters.kinds.loha:LohaLayer",
        "lokr": "lorasmith.adapters.kinds.lokr:LokrLayer",
        "full": "lorasmith.adapters.kinds.full:FullLayer",
        "dora": "lorasmith.adapters.kinds.dora:DoraLayer",
    },
)
"""Subclasses of ``lorasmith.adapters.kinds.base.AdapterLayer``: what the adapter of a layer can be
in a LoRA file. The first kind whose key suffixes match reads a layer."""
MODEL_FAMILIES: Registry[Any] = Registry(
    "model family",
    "model_families",
    {
        "sd1": "lorasmith.models.families.builtin:SD1",
        "sd2": "lorasmith.models.families.builtin:SD2",
        "sdxl": "lorasmith.models.families.builtin:SDXL",
        "sdxl-refiner": "lorasmith.models.families.builtin:SDXL_REFINER",
    },
)
"""A `lorasmith.models.families.family.ModelFamily`, registered under its own ``name``."""
CAPTION_SOURCES: Registry[Any] = Registry(
    "caption source",
    "caption_sources",
    {
        "auto": "lorasmith.data.reading.captions.caption_sources:find_auto_caption",
        "txt": "lorasmith.data.reading.captions.caption_sources:read_text_caption",
        "metadata": "lorasmith.data.reading.captions.caption_sources:read_metadata_caption",
        "folder-name": "lorasmith.data.reading.captions.caption_sources:read_folder_caption",
    },
)
"""Functions from an ``ImageContext`` to a ``Caption``, or to None where they have none
(``lorasmith.data.reading.captions.caption_sources``)."""
DATASET_RULES: Registry[Any] = Registry(
    "dataset rule",
    "dataset_rules",
    {
        "files": "lorasmith.data.rules.files:report_file_problems",
        "tag-missing": "lorasmith.data.rules.trigger_word:find_missing_tags",
        "tag-spelling": "lorasmith.data.rules.trigger_word:find_misspelled_tags",
        "same-captions": "lorasmith.data.rules.captions:check_identical_captions",
        "tag-company": "lorasmith.data.rules.trigger_word:find_cooccurring_words",
        "long-captions": "lorasmith.data.rules.captions:find_long_captions",
        "garbled": "lorasmith.data.rules.captions:find_garbled_captions",
        "duplicates": "lorasmith.data.rules.duplicates:find_duplicates",
        "near-duplicates": "lorasmith.data.rules.duplicates:find_near_duplicates",
        "tiny": "lorasmith.data.rules.images:find_tiny_images",
        "cropped": "lorasmith.data.rules.images:find_cropped_images",
        "blank": "lorasmith.data.rules.images:find_blank_images",
        "transparent": "lorasmith.data.rules.images:find_transparent_images",
        "few-images": "lorasmith.data.rules.images:check_image_count",
    },
)
"""Functions that read a ``DatasetFacts`` and yield ``Finding``s (``lorasmith.data.rules``); they
run in this order."""
_SECTIONS = "lorasmith.reports.sections"
REPORT_SECTIONS: Registry[Callable[[Any], str]] = Registry(
    "report section",
    "report_sections",
    {
        "advice": f"{_SECTIONS}.advice:advice_section",
        "key-metrics": f"{_SECTIONS}.key_metrics:key_metrics_section",
        "before-after": f"{_SECTIONS}.previews:before_after_section",
        "curves": f"{_SECTIONS}.curves:curves_section",
        "previews": f"{_SECTIONS}.previews:timeline_section",
        "settings": f"{_SECTIONS}.settings:settings_section",
    },
)
"""Sections of a run's report.html, in their order: functions from a ``RunFolder`` to HTML text
(`lorasmith.reports.sections.ReportSection`)."""
