"""Reading the JSON files in a model's folder."""

from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError
from lorasmith.core.json_text import parse_json_object


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """Read a JSON object below a model's folder.

    Raises:
        WeightsError: missing, not JSON, or not an object.
    """
    try:
        return parse_json_object((folder / file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"model {folder}: {file} is missing") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"model {folder}: {file} cannot be read: {error}") from error
