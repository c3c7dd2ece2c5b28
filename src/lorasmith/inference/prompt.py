"""Prompt syntax: finding ``<lora:name:weight>`` and the file that a name stands for."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from lorasmith.core.errors import ConfigError, WeightsError, did_you_mean

MAX_WEIGHT = 10.0
SUFFIX = ".safetensors"

_MENTION = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_UNCLOSED = re.compile(r"<lora:[^<>]{0,40}", re.IGNORECASE)
_HOW = "write <lora:NAME> or <lora:NAME:WEIGHT>"


@dataclass(frozen=True)
class LoraMention:
    """A LoRA that a prompt asks for."""

    name: str
    """File name without its suffix."""
    weight: float = 1.0
    """Strength; 1 is as trained, negative turns it round."""


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart."""

    source: str
    """What was written."""
    text: str
    """What the text encoder reads: the source without mentions."""
    loras: tuple[LoraMention, ...] = ()
    """The LoRAs asked for, in order; a name given twice has the sum of its weights."""


def parse_prompt(source: str) -> Prompt:
    """Take ``<lora:NAME>`` and ``<lora:NAME:WEIGHT>`` out of a prompt.

    Raises:
        ConfigError: a mention is malformed, its name could leave the LoRA folder, or its weight
            is not a number from -10 to 10; or the prompt is not valid text.
    """
    check_text("prompt", source)
    loras: dict[str, float] = {}
    for match in _MENTION.finditer(source):
        mention = _mention(match[0], match[1])
        loras[mention.name] = loras.get(mention.name, 0.0) + mention.weight
    text = _MENTION.sub(" ", source)
    unclosed = _UNCLOSED.search(text)
    if unclosed:
        raise ConfigError(f"prompt: {unclosed[0]!r} is not closed with '>'; {_HOW}")
    clean = re.sub(r"[ \t]+", " ", text).strip() if loras else source
    return Prompt(source, clean, tuple(LoraMention(*item) for item in loras.items()))


def check_negative(negative: str) -> None:
    """Refuse LoRA mentions in the negative prompt, where they would do nothing.

    Raises:
        ConfigError: there is one, or the text is not valid.
    """
    check_text("negative", negative)
    found = _UNCLOSED.search(negative)
    if found:
        raise ConfigError(f"negative: {found[0]!r} has no effect there; move it to the prompt")


def check_text(field: str, text: str) -> None:
    """Refuse what is not text, such as bytes of another encoding on the command line.

    Raises:
        ConfigError: not a string that UTF-8 can hold.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{field}: {text!r} is not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{field}: {text!r} is not valid UTF-8 text") from error


def find_lora(name: str, folder: Path = Path("loras")) -> Path:
    """Return the file ``NAME.safetensors`` of the LoRA folder.

    The folder is listed and the name looked up in the list, so a name never becomes part of a
    path, and a link that leads out of the folder is refused.

    Raises:
        ConfigError: the name is not a plain file name.
        WeightsError: no such folder, no such file (close matches are named), or a link out of it.
    """
    _check_name(name, f"LoRA {name!r}")
    if not folder.is_dir():
        raise WeightsError(f"LoRA {name!r}: there is no folder {folder}; name it with --lora-dir")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX}
    path = files.get(name.removesuffix(SUFFIX))
    if path is None:
        known = f"; it has {len(files)} LoRA files" if files else "; it has no LoRA files"
        hint = did_you_mean(name, files) or known
        raise WeightsError(
            f"LoRA {name!r}: no {name.removesuffix(SUFFIX)}{SUFFIX} in {folder}{hint}"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise WeightsError(f"LoRA {name!r}: {path} is a link out of {folder}; copy the file there")
    if not path.is_file():
        raise WeightsError(f"LoRA {name!r}: {path} is not a file")
    return path


def _mention(whole: str, inside: str) -> LoraMention:
    name, *rest = (part.strip() for part in inside.split(":"))
    if len(rest) > 1:
        raise ConfigError(f"prompt: {whole!r} has too many parts; {_HOW}")
    _check_name(name, f"prompt: {whole!r}")
    return LoraMention(name, _weight(whole, rest[0]) if rest else 1.0)


def _check_name(name: str, where: str) -> None:
    if not name:
        raise ConfigError(f"{where} has no name; {_HOW}")
    if "\0" in name or "/" in name or "\\" in name or ".." in name:
        raise ConfigError(
            f"{where}: a LoRA name is a plain file name, without slashes, '..' or NUL; "
            "put the file into the LoRA folder or name that folder with --lora-dir"
        )


def _weight(whole: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError as error:
        raise ConfigError(f"prompt: {whole!r}: {text!r} is not a number; {_HOW}") from error
    if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
        raise ConfigError(
            f"prompt: {whole!r}: weight {text} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
        )
    return weight
