"""Prompt syntax: finding ``<lora:name:weight>``."""

import math
import re
from dataclasses import dataclass

from lorasmith.core.errors import ConfigError

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
        total = loras.get(mention.name, 0.0) + mention.weight
        loras[mention.name] = check_weight(f"prompt: {match[0]!r}, all mentions together", total)
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


def _mention(whole: str, inside: str) -> LoraMention:
    name, *rest = (part.strip() for part in inside.split(":"))
    if len(rest) > 1:
        raise ConfigError(f"prompt: {whole!r} has too many parts; {_HOW}")
    check_name(name, f"prompt: {whole!r}")
    return LoraMention(name, check_weight(f"prompt: {whole!r}", rest[0]) if rest else 1.0)


def check_name(name: str, where: str) -> None:
    """Refuse a name that could lead out of the LoRA folder.

    Raises:
        ConfigError: no name, or one with slashes, ``..`` or NUL.
    """
    if not name:
        raise ConfigError(f"{where} has no name; {_HOW}")
    if "\0" in name or "/" in name or "\\" in name or ".." in name:
        raise ConfigError(
            f"{where}: a LoRA name is a plain file name, without slashes, '..' or NUL; "
            "put the file into the LoRA folder or name that folder with --lora-dir"
        )


def check_weight(where: str, weight: str | float, how: str = _HOW) -> float:
    """Return a LoRA's weight as a number.

    Raises:
        ConfigError: not a number from -10 to 10.
    """
    try:
        number = float(weight)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {weight!r} is not a number; {how}") from error
    if not (math.isfinite(number) and abs(number) <= MAX_WEIGHT):
        raise ConfigError(
            f"{where}: weight {weight} is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
        )
    return number
