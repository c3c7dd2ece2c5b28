"""From the name of a LoRA to its file.

A prompt may come from anybody, so a name in it can only choose among the files in the LoRA folder.
A path comes from the user, on the command line or in Python, and is used as it is.
"""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from lorasmith.core.errors import ConfigError, WeightsError, did_you_mean
from lorasmith.core.files import TEMPORARY_PREFIX
from lorasmith.inference.prompts.lora_request import (
    LoraRequest,
    TextPosition,
    check_name,
    parse_request_options,
)
from lorasmith.inference.prompts.parse_prompt import LORA_SUFFIX

_SYNTAX_HINT = "write NAME, NAME:WEIGHT or path/to/file.safetensors:WEIGHT"


def find_lora(name: str, folder: Path = Path("loras")) -> Path:
    """Return the file ``NAME.safetensors`` of the LoRA folder or of a run's folder in it.

    Both levels are listed and the name looked up in the list, so a name never becomes part of a
    path; a link out of the folder is refused.

    Args:
        name: file name, with or without its suffix.
        folder: the LoRA folder: ``loras/NAME.safetensors``, ``loras/RUN/NAME.safetensors``.

    Raises:
        ConfigError: the name is not a plain file name.
        WeightsError: no such folder, no such file (close matches are named), several files of
            that name, or a link out of the folder.
    """
    check_name(name, f"LoRA {name!r}")
    if not folder.is_dir():
        raise WeightsError(f"LoRA {name!r}: there is no folder {folder}; name it with --lora-dir")
    files = _files_by_name(name, folder)
    stem = unicodedata.normalize("NFC", name.removesuffix(LORA_SUFFIX))
    matches = files.get(stem, [])
    if not matches:
        contents = f"; it has {len(files)} LoRA files" if files else "; it has no LoRA files"
        hint = did_you_mean(stem, files) or contents
        raise WeightsError(f"LoRA {name!r}: no {stem}{LORA_SUFFIX} in {folder}{hint}")
    if len(matches) > 1:
        paths = " and ".join(str(path) for path in matches)
        raise WeightsError(
            f"LoRA {name!r}: several files have this name, {paths}; rename one or give its path "
            "with --lora"
        )
    path = matches[0]
    if not _is_inside(path, folder):
        raise WeightsError(f"LoRA {name!r}: {path} is a link out of {folder}; copy the file there")
    if not path.is_file():
        raise WeightsError(f"LoRA {name!r}: {path} is not a file")
    return path


def resolve_lora(text: str | Path, folder: Path) -> Path:
    """Return the file that a user means: text with a slash or the suffix is a path, else a name.

    Raises:
        ConfigError: no file name at all.
        WeightsError: there is no such file; of a name, see `find_lora`.
    """
    if isinstance(text, str) and not _is_path(text):
        return find_lora(text, folder)
    if "\0" in str(text):
        raise ConfigError(f"LoRA {str(text)!r}: a path has no NUL")
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return path
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise WeightsError(f"LoRA {path}: cannot be opened ({error.strerror})") from error
    raise WeightsError(f"LoRA {path}: no such file{did_you_mean(path.name, siblings)}")


def list_lora_files(folder: Path) -> list[Path]:
    """Return the LoRA files that lie directly in a folder, in the order of their names.

    Raises:
        WeightsError: no such folder, it cannot be listed, or it has none.
    """
    if not folder.is_dir():
        raise WeightsError(f"library {folder}: there is no such folder")
    try:
        files = [path for path in sorted(folder.iterdir()) if _is_lora(path) and path.is_file()]
    except OSError as error:
        raise WeightsError(
            f"library {folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    if not files:
        raise WeightsError(
            f"library {folder}: it has no LoRA files; its subfolders are not searched"
        )
    return files


def parse_lora_option(text: str) -> LoraRequest:
    """Parse ``NAME``, ``NAME:WEIGHT`` or ``path/to/file.safetensors:WEIGHT``.

    After the name comes what `lorasmith.inference.prompts.lora_request.parse_lora_request` accepts.

    Raises:
        ConfigError: no name, or what follows it is malformed, at which column.
    """
    parts = text.split(":")
    # Colons before the last part of a path are those of a folder's name, or of C:\
    name_end = max((index for index, part in enumerate(parts) if _is_path(part)), default=0)
    name = ":".join(parts[: name_end + 1])
    if not name.strip():
        raise ConfigError(f"--lora {text!r} has no name; {_SYNTAX_HINT}")
    position = TextPosition(f"--lora {text!r}", len(name) + 2)
    return parse_request_options(name.strip(), parts[name_end + 1 :], position, _SYNTAX_HINT)


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or "\\" in text or text.endswith(LORA_SUFFIX)


def _files_by_name(name: str, folder: Path) -> dict[str, list[Path]]:
    """Return the files by their names, which macOS decomposes, in composed form."""
    files: dict[str, list[Path]] = {}
    try:
        for path in _iter_lora_files(folder):
            files.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    except OSError as error:
        raise WeightsError(
            f"LoRA {name!r}: {folder} cannot be listed ({error.strerror}); check its permissions"
        ) from error
    return files


def _iter_lora_files(folder: Path) -> Iterator[Path]:
    """Yield the LoRA files of the folder, then those of its subfolders."""
    entries = sorted(folder.iterdir())
    yield from (path for path in entries if _is_lora(path))
    for entry in entries:
        # A linked folder is not even listed unless it lies inside.
        if not _is_lora(entry) and entry.is_dir() and _is_inside(entry, folder):
            yield from (path for path in sorted(entry.iterdir()) if _is_lora(path))


def _is_lora(path: Path) -> bool:
    return path.suffix == LORA_SUFFIX and not path.name.startswith(TEMPORARY_PREFIX)


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # links that lead to each other (Python 3.12 and earlier)
        return False
