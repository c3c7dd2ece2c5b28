"""Reading the JSON files in a model's folder."""

from pathlib import Path
from typing import Any

from lorasmith.core.errors import WeightsError
from lorasmith.core.text.json_text import parse_json_object

MAX_JSON_BYTES = 8 * 2**20
"""Larger files are refused; a tokenizer has up to 4 MiB, a config a few KiB."""


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """Read a JSON object below a model's folder.

    Raises:
        WeightsError: missing, not a file, too large, not JSON, nested too deeply, or not an object.
    """
    text = read_text_file(folder, file)
    try:
        return parse_json_object(text)
    except ValueError as error:
        raise WeightsError(f"model {folder}: {file} cannot be read: {error}") from error


def read_text_file(folder: Path, file: str) -> str:
    """Read a text file below a model's folder.

    Raises:
        WeightsError: missing, not a file, too large, or not UTF-8.
    """
    path = folder / file
    where = f"model {folder}: {file}"
    try:
        if not path.exists():
            raise WeightsError(f"{where} is missing")
        if not path.is_file():  # opening a pipe would wait forever
            raise WeightsError(f"{where} is not a file; copy or download the whole folder again")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise WeightsError(f"{where} has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{where} cannot be read: {error}") from error
