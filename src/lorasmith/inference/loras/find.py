"""From the name of a LoRA to its file.

A name in a prompt may come from anybody, so it can only ever choose among the files that lie in the
LoRA folder. A path, on the command line or in Python, is the user's own word and is taken as it is.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lorasmith.core.errors import ConfigError, WeightsError, did_you_mean
from lorasmith.core.files import TEMPORARY_PREFIX
from lorasmith.inference.prompts.lora_syntax import (
    LoraRequest,
    TextPosition,
    check_name,
    parse_request_options,
)
from lorasmith.inference.prompts.parser import LORA_SUFFIX

_HOW = "write NAME, NAME:WEIGHT or path/to/file.safetensors:WEIGHT"


def find_lora(name: str, folder: Path = Path("loras")) -> Path:
    """Return the file ``NAME.safetensors`` of the LoRA folder or of a run's folder in it.

    Both levels are listed and the name looked up in the list, so a name never becomes part of a
    path; what a link out of the folder leads to is refused.

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
    stem = name.removesuffix(LORA_SUFFIX)
    found = files.get(stem, [])
    if not found:
        known = f"; it has {len(files)} LoRA files" if files else "; it has no LoRA files"
        hint = did_you_mean(stem, files) or known
        raise WeightsError(f"LoRA {name!r}: no {stem}{LORA_SUFFIX} in {folder}{hint}")
    if len(found) > 1:
        both = " and ".join(str(path) for path in found)
        raise WeightsError(
            f"LoRA {name!r}: several files have this name, {both}; rename one or give its path "
            "with --lora"
        )
    path = found[0]
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
        near = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise WeightsError(f"LoRA {path}: cannot be opened ({error.strerror})") from error
    raise WeightsError(f"LoRA {path}: no such file{did_you_mean(path.name, near)}")


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
            f"library {folder}: it has no LoRA files; those of folders in it are not looked at"
        )
    return files


def parse_lora_option(text: str) -> LoraRequest:
    """Take ``NAME``, ``NAME:WEIGHT`` or ``path/to/file.safetensors:WEIGHT`` apart.

    Behind the name stands what `lorasmith.inference.prompts.lora_syntax.parse_mention` takes.

    Raises:
        ConfigError: no name, or what follows it is malformed, at which column.
    """
    parts = text.split(":")
    # Colons before the last part of a path are those of a folder's name, or of C:\
    named = max((place for place, part in enumerate(parts) if _is_path(part)), default=0)
    name = ":".join(parts[: named + 1])
    if not name.strip():
        raise ConfigError(f"--lora {text!r} has no name; {_HOW}")
    spot = TextPosition(f"--lora {text!r}", len(name) + 2)
    return parse_request_options(name.strip(), parts[named + 1 :], spot, _HOW)


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or "\\" in text or text.endswith(LORA_SUFFIX)


def _files_by_name(name: str, folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    try:
        for path in _candidates(folder):
            found.setdefault(path.stem, []).append(path)
    except OSError as error:
        raise WeightsError(
            f"LoRA {name!r}: {folder} cannot be listed ({error.strerror}); check its permissions"
        ) from error
    return found


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the LoRA files of the folder, then those of the folders in it."""
    entries = sorted(folder.iterdir())
    yield from (path for path in entries if _is_lora(path))
    for place in entries:
        # A linked folder is not even listed unless it lies inside.
        if not _is_lora(place) and place.is_dir() and _is_inside(place, folder):
            yield from (path for path in sorted(place.iterdir()) if _is_lora(path))


def _is_lora(path: Path) -> bool:
    return path.suffix == LORA_SUFFIX and not path.name.startswith(TEMPORARY_PREFIX)


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # links that lead to each other (Python 3.12 and earlier)
        return False
