"""Which files a model's folder must have; one that is not whole is refused before it is read."""

from collections.abc import Iterable
from pathlib import Path

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.stored_tensors import list_weights_files
from lorasmith.models.scheduler_config import SCHEDULER_FILE
from lorasmith.models.text.tokenizer_files import missing_tokenizer_files


def check_files(folder: Path, networks: Iterable[str], tokenizers: Iterable[str]) -> None:
    """Check that every file is there that these parts of a model need.

    Shards count by their index. Links to nothing, which a broken download leaves, count as missing.

    Raises:
        WeightsError: the first missing files are named, or a network has only pickled weights.
    """
    configs = [f"{part}/config.json" for part in networks]
    missing = [file for file in (*configs, SCHEDULER_FILE) if not (folder / file).is_file()]
    for part in tokenizers:
        missing += [f"{part}/{file}" for file in missing_tokenizer_files(folder / part)]
    for part in networks:
        files = _list_weights(folder, part)
        missing += [f"{part}/{file.name}" for file in files if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise WeightsError(
            f"model {folder}: {missing[0]} is missing{more}; the model is not whole, copy or "
            "download the folder again"
        )


def _list_weights(folder: Path, part: str) -> list[Path]:
    try:
        return list_weights_files(folder / part)
    except WeightsError as error:
        raise WeightsError(f"model {folder}: {part} cannot be loaded: {error}") from error
