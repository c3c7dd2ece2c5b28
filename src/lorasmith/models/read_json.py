"""Reading the JSON files in a model's folder."""

import json
from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """Read a JSON object below a model's folder.

    Raises:
        WeightsError: missing, not JSON, or not an object.
    """
    try:
        config = json.loads((folder / file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"model {folder}: {file} is missing") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"model {folder}: {file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"model {folder}: {file} is not a JSON object")
    return config
