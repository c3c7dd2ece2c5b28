"""Prompts: LoRAs that they ask for, and words with emphasis."""

import re
from dataclasses import dataclass

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.emphasis import parse_emphasis
from lorasmith.inference.prompts.lora_syntax import (
    SYNTAX_HINT,
    LoraRequest,
    TextPosition,
    check_name,
    check_weight,
    merge_requests,
    parse_lora_request,
)
from lorasmith.models.text.prompt_spans import WeightedPrompt, unweighted_prompt

__all__ = [
    "LORA_SUFFIX",
    "LoraRequest",
    "Prompt",
    "check_name",
    "check_negative_prompt",
    "check_text",
    "check_weight",
    "make_plain_prompt",
    "parse_negative_prompt",
    "parse_prompt",
]  # fmt: skip

LORA_SUFFIX = ".safetensors"

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
    loras: tuple[LoraRequest, ...] = ()
    """The LoRAs asked for, in order; what is given twice has the sum of its weights."""
    weighted: WeightedPrompt = ()
    """What the text encoders read; left out, the text as it stands."""

    def __post_init__(self) -> None:
        if not self.weighted:
            object.__setattr__(self, "weighted", unweighted_prompt(self.text))


def make_plain_prompt(text: str) -> Prompt:
    """Return a text as it stands as a prompt: a caption, in which no sign means anything."""
    return Prompt(text, text)


def parse_prompt(source: str) -> Prompt:
    """Take a prompt apart: mentions of LoRAs, emphasis, BREAK.

    Raises:
        ConfigError: something is malformed, at which column; a LoRA's name could leave the LoRA
            folder; a weight is not a number from -10 to 10; or the prompt is not valid text.
    """
    return _parsed(source, "prompt")


def parse_negative_prompt(source: str) -> Prompt:
    """Take a negative prompt apart; it must not mention LoRAs, which would do nothing there.

    Raises:
        ConfigError: it does, or see `parse_prompt`.
    """
    check_text("negative", source)
    found = _UNCLOSED.search(source)
    if found:
        position = TextPosition("negative", found.start() + 1)
        raise ConfigError(f"{position}: {found[0]!r} has no effect there; move it to the prompt")
    return _parsed(source, "negative")


def check_negative_prompt(negative: str) -> None:
    """Refuse a negative prompt that `parse_negative` refuses.

    Raises:
        ConfigError: see there.
    """
    parse_negative_prompt(negative)


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
    loras = merge_requests(
        (parse_lora_request(found[1], spot.shifted(len(_OPENING))), spot)
        for found in _MENTION.finditer(source)
        for spot in [TextPosition(where, found.start() + 1)]
    )
    # Blanks for mentions, so that columns of what is left are those of the source.
    rest = _MENTION.sub(lambda found: " " * len(found[0]), source)
    unclosed = _UNCLOSED.search(rest)
    if unclosed:
        spot = TextPosition(where, unclosed.start() + 1)
        raise ConfigError(f"{spot}: {unclosed[0]!r} is not closed with '>'; {SYNTAX_HINT}")
    foreign = _FOREIGN.search(rest)
    if foreign:
        spot = TextPosition(where, foreign.start() + 1)
        raise ConfigError(
            f"{spot}: {foreign[0]!r} is not known here; {SYNTAX_HINT}, also for LyCORIS files"
        )
    text, passage = parse_emphasis(rest, where)
    clean = re.sub(r"[ \t]+", " ", text).strip() if rest != source else text
    return Prompt(source, clean, loras, passage)
