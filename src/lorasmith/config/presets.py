"""Settings that suit a purpose, laid under a run's own: `lorasmith train --preset`."""

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["style", "subject"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    # A style is in all layers of the transformers; words keep their meaning.
    "style": {
        "lora": {"targets": "all-linear", "rank": 16},
        "train": {
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 0.08,
            "loss": {"min_snr_gamma": 5.0},
        },
    },
    # A new thing needs a word for it, hence the text encoder.
    "subject": {
        "lora": {"targets": ["all-linear", "text-encoder"], "rank": 16},
        "train": {
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 0.08,
            "loss": {"min_snr_gamma": 5.0},
        },
    },
}
"""Trees of settings by name."""

ADVICE: Mapping[Preset, str] = {
    "subject": (
        "without images of its class (data.reg_data_dir), everything of that class becomes "
        "like the subject"
    ),
}
"""What to say about a preset where ``data.reg_data_dir`` is not set."""
