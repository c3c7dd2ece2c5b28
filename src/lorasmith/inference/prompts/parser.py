"""Prompts: LoRAs that they ask for, and words with emphasis."""

import re
from dataclasses import dataclass

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.emphasis import parse_words
from lorasmith.inference.prompts.lora_syntax import (
    HOW,
    LoraMention,
    Spot,
    added_up,
    check_name,
    check_weight,
    parse_mention,
)
from lorasmith.models.text.prompt_spans import Passage, plain_passage

__all__ = [
    "SUFFIX", "LoraMention", "Prompt", "check_name", "check_negative", "check_text", "check_weight",
    "parse_negative", "parse_prompt", "plain_prompt",
]  # fmt: skip

SUFFIX = ".safetensors"

_OPENING = "<lora:"
_MENTION = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_UNCLOSED = re.compile(r"<lora:[^<>]{0,40}", re.IGNORECASE)

_FOREIGN = re.compile(r"<(?:lora|(?:lyco|lycoris|hypernet):[^<>]{0,40})>?", re.IGNORECASE)
"""Mentions that other programs know, or that lack their name."""


@dataclass(frozen=True)
class Prompt:
    """A prompt taken apart."""

    source: str
    """What was written."""
    text: str
    """Its words, without mentions and marks of emphasis: where tags are looked for."""
    loras: tuple[LoraMention, ...] = ()
    """The LoRAs asked for, in order; what is given twice has the sum of its weights."""
    passage: Passage = ()
    """What the text encoders read; left out, the text as it stands."""

    def __post_init__(self) -> None:
        if not self.passage:
            object.__setattr__(self, "passage", plain_passage(self.text))


def plain_prompt(text: str) -> Prompt:
    """Return a text as it stands as a prompt: a caption, in which no sign means anything."""
    return Prompt(text, text)


def parse_prompt(source: str) -> Prompt:
    """Take a prompt apart: mentions of LoRAs, emphasis, BREAK.

    Raises:
        ConfigError: something is malformed, at which column; a LoRA's name could leave the LoRA
            folder; a weight is not a number from -10 to 10; or the prompt is not valid text.
    """
    return _parsed(source, "prompt")


def parse_negative(source: str) -> Prompt:
    """Take a negative prompt apart; it must not mention LoRAs, which would do nothing there.

    Raises:
        ConfigError: it does, or see `parse_prompt`.
    """
    check_text("negative", source)
    found = _UNCLOSED.search(source)
    if found:
        raise ConfigError(
            f"{Spot('negative', found.start() + 1)}: {found[0]!r} has no effect there; move it to "
            "the prompt"
        )
    return _parsed(source, "negative")


def check_negative(negative: str) -> None:
    """Refuse a negative prompt that `parse_negative` refuses.

    Raises:
        ConfigError: see there.
    """
    parse_negative(negative)


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


def _parsed(source: str, where: str) -> Prompt:
    check_text(where, source)
    loras = added_up(
        (parse_mention(found[1], spot.after(len(_OPENING))), spot)
        for found in _MENTION.finditer(source)
        for spot in [Spot(where, found.start() + 1)]
    )
    # Blanks for mentions, so that columns of what is left are those of the source.
    rest = _MENTION.sub(lambda found: " " * len(found[0]), source)
    unclosed = _UNCLOSED.search(rest)
    if unclosed:
        spot = Spot(where, unclosed.start() + 1)
        raise ConfigError(f"{spot}: {unclosed[0]!r} is not closed with '>'; {HOW}")
    foreign = _FOREIGN.search(rest)
    if foreign:
        spot = Spot(where, foreign.start() + 1)
        raise ConfigError(
            f"{spot}: {foreign[0]!r} is not known here; {HOW}, also for LyCORIS files"
        )
    text, passage = parse_words(rest, where)
    clean = re.sub(r"[ \t]+", " ", text).strip() if rest != source else text
    return Prompt(source, clean, loras, passage)
