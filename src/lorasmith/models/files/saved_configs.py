"""The configs that single files of lorasmith hold in their metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError
from lorasmith.core.text.json_text import parse_json
from lorasmith.models.files.configs import CLASSES
from lorasmith.models.files.source import check_config

CONFIGS = "lorasmith.model"
"""The metadata entry with a model's configs."""


def read_saved_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a file of lorasmith says about its model, or an empty dictionary.

    Raises:
        WeightsError: it is damaged or incomplete, or a value in it cannot be.
    """
    text = metadata.get(CONFIGS)
    if text is None:
        return {}
    try:
        saved = parse_json(text)
        configs = dict(saved["configs"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"model {path}: its {CONFIGS} is damaged: {error}") from error
    if not {"unet", "vae", "scheduler"} <= configs.keys():
        raise WeightsError(f"model {path}: its {CONFIGS} is incomplete")
    for part, config in configs.items():
        if part not in (*CLASSES, "scheduler") or not isinstance(config, dict):
            raise WeightsError(f"model {path}: its {CONFIGS} is damaged: {part[:60]!r}")
        configs[part] = check_config(path, part, config, f"{CONFIGS} ({part})")
    return {
        "configs": configs,
        "pad_tokens": _texts(saved.get("pad_tokens")),
        "flat_text": [part for part in CLASSES if part in _list(saved.get("flat_text"))],
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(values: Any) -> dict[str, str]:
    """Return the entries of a dictionary that are texts by text."""
    if not isinstance(values, dict):
        return {}
    return {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, str)}
