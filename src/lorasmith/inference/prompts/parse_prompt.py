"""Prompts: the LoRAs that they request, and words with emphasis."""

import re
from dataclasses import dataclass

from lorasmith.core.errors import ConfigError
from lorasmith.core.text.trigger_word import escape_brackets
from lorasmith.inference.prompts.emphasis import parse_emphasis
from lorasmith.inference.prompts.lora_request import (
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
]

LORA_SUFFIX = ".safetensors"

_OPENING = "<lora:"
_MENTION = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_UNCLOSED = re.compile(r"<lora:[^<>]{0,40}", re.IGNORECASE)

_UNSUPPORTED = re.compile(r"<(?:lora|(?:lyco|lycoris|hypernet):[^<>]{0,40})>?", re.IGNORECASE)
"""Mentions that other programs know, or that lack their name."""


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt."""

    source: str
    """What was written."""
    text: str
    """Its words, without mentions of LoRAs and emphasis marks."""
    loras: tuple[LoraRequest, ...] = ()
    """The requested LoRAs, in order; repeated ones are merged, with the sum of their weights."""
    weighted: WeightedPrompt = ()
    """What the text encoders read, and where trigger words are found; left out, the plain text."""

    def __post_init__(self) -> None:
        if not self.weighted:
            object.__setattr__(self, "weighted", unweighted_prompt(self.text))


def make_plain_prompt(text: str) -> Prompt:
    """Return a text as a prompt without any syntax, such as a caption.

    Its source has brackets escaped, so that it means the same where it is used as a prompt.
    """
    return Prompt(escape_brackets(text), text)


def parse_prompt(source: str) -> Prompt:
    """Parse a prompt: mentions of LoRAs, emphasis, BREAK.

    Raises:
        ConfigError: something is malformed, at which column; a LoRA's name could leave the LoRA
            folder; a weight is not a number from -10 to 10; or the prompt is not valid text.
    """
    return _parse(source, "prompt")


def parse_negative_prompt(source: str) -> Prompt:
    """Parse a negative prompt; it must not mention LoRAs, which would have no effect there.

    Raises:
        ConfigError: it does, or see `parse_prompt`.
    """
    check_text("negative_prompt", source)
    match = _UNCLOSED.search(source)
    if match:
        position = TextPosition("negative_prompt", match.start() + 1)
        raise ConfigError(f"{position}: {match[0]!r} has no effect there; move it to the prompt")
    return _parse(source, "negative_prompt")


def check_negative_prompt(negative_prompt: str) -> None:
    """Refuse a negative prompt that `parse_negative_prompt` refuses.

    Raises:
        ConfigError: see there.
    """
    parse_negative_prompt(negative_prompt)


def check_text(label: str, text: str) -> None:
    """Refuse what is not text, such as bytes of another encoding on the command line.

    Raises:
        ConfigError: not a string that UTF-8 can hold.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{label}: {text!r} is not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{label}: {text!r} is not valid UTF-8 text") from error


def _parse(source: str, label: str) -> Prompt:
    check_text(label, source)
    loras = merge_requests(
        (parse_lora_request(match[1], position.shifted(len(_OPENING))), position)
        for match in _MENTION.finditer(source)
        for position in [TextPosition(label, match.start() + 1)]
    )
    # Mentions become spaces, so that columns stay those of the source.
    blanked = _MENTION.sub(lambda match: " " * len(match[0]), source)
    unclosed = _UNCLOSED.search(blanked)
    if unclosed:
        position = TextPosition(label, unclosed.start() + 1)
        raise ConfigError(f"{position}: {unclosed[0]!r} is not closed with '>'; {SYNTAX_HINT}")
    unsupported = _UNSUPPORTED.search(blanked)
    if unsupported:
        position = TextPosition(label, unsupported.start() + 1)
        raise ConfigError(
            f"{position}: {unsupported[0]!r} is not known here; {SYNTAX_HINT}, also for LyCORIS "
            "files"
        )
    text, weighted = parse_emphasis(blanked, label)
    if blanked != source:
        text = re.sub(r"[ \t]+", " ", text).strip()
    return Prompt(source, text, loras, weighted)
