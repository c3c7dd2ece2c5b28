r"""Emphasis in prompts: ``(word)``, ``(word:1.2)``, ``[word]``, ``BREAK`` and ``\(``.

Round brackets multiply a weight by 1.1 or by the number at their end, square ones divide it by 1.1;
brackets within brackets multiply. BREAK begins a new chunk.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.lora_syntax import TextPosition
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    PromptSection,
    PromptSpan,
    WeightedPrompt,
)

BRACKET_FACTOR = 1.1
MAX_EMPHASIS = 10.0

_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = re.compile(r":\s*(?P<number>[^:]*?)\s*$")
_NUMBER_LIKE = re.compile(r"[-+.\d][-+.\deE]*")
"""What is meant as a number, though it may be malformed."""
_ESCAPABLE = "()[]\\"
_OPENING_OF = {")": "(", "]": "["}


@dataclass
class _OpenBracket:
    bracket: str
    position: TextPosition
    first_piece: int
    """Index of the first piece inside."""


@dataclass
class _Piece:
    """Text of one weight; None for a BREAK."""

    text: str | None
    weight: float = 1.0


class _Parser:
    """Parses a text character by character."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._pieces: list[_Piece] = []
        self._text = ""
        self._open_brackets: list[_OpenBracket] = []

    def parse(self, text: str) -> list[_Piece]:
        index = 0
        while index < len(text):
            char, position = text[index], TextPosition(self._source, index + 1)
            if char == "\\" and text[index + 1 : index + 2] in set(_ESCAPABLE):
                self._text += text[index + 1]
                index += 2
                continue
            if char in "([":
                self._flush()
                self._open_brackets.append(_OpenBracket(char, position, len(self._pieces)))
            elif char in ")]":
                self._close_bracket(char, position)
            elif match := _BREAK.match(text, index):
                self._flush()
                self._pieces.append(_Piece(None))
                index = match.end()
                continue
            else:
                self._text += char
            index += 1
        if self._open_brackets:
            unclosed = self._open_brackets[-1]
            _raise_at(unclosed.position, unclosed.bracket, "is not closed")
        self._flush()
        return self._pieces

    def _close_bracket(self, bracket: str, position: TextPosition) -> None:
        if not self._open_brackets or self._open_brackets[-1].bracket != _OPENING_OF[bracket]:
            _raise_at(position, bracket, "closes nothing")
        opening = self._open_brackets.pop()
        if bracket == ")":
            factor = self._pop_weight(position)
        else:
            self._refuse_scheduling(position)
            factor = 1 / BRACKET_FACTOR
        self._flush()
        for piece in self._pieces[opening.first_piece :]:
            piece.weight *= factor

    def _pop_weight(self, position: TextPosition) -> float:
        """Return what round brackets that end here multiply by, and remove the number."""
        match = _WEIGHT.search(self._text)
        if match is None or not _NUMBER_LIKE.fullmatch(match["number"]):
            return BRACKET_FACTOR
        number_position = position.shifted(match.start("number") - len(self._text))
        try:
            number = float(match["number"])
        except ValueError as error:
            raise ConfigError(
                f"{number_position}: {match['number']!r} is not a number; write it like (word:1.2)"
            ) from error
        if not math.isfinite(number) or abs(number) > MAX_EMPHASIS:
            raise ConfigError(
                f"{number_position}: emphasis {number:g} is not between -{MAX_EMPHASIS:g} and "
                f"{MAX_EMPHASIS:g}"
            )
        self._text = self._text[: match.start()]
        return number

    def _refuse_scheduling(self, position: TextPosition) -> None:
        match = _WEIGHT.search(self._text)
        if "|" in self._text or (match and re.fullmatch(r"[\d.]+", match["number"])):
            raise ConfigError(
                f"{position}: prompts that change between steps ([from:to:0.5], [one|other]) are "
                r"not supported; write (word:0.8) for a weight, \[ and \] for plain brackets"
            )

    def _flush(self) -> None:
        if self._text:
            self._pieces.append(_Piece(self._text))
        self._text = ""


def parse_emphasis(text: str, source: str) -> tuple[str, WeightedPrompt]:
    r"""Return a text without its emphasis marks, and its pieces with their weights.

    Plain brackets are written ``\(``, ``\)``, ``\[``, ``\]``. In the first result pieces are
    separate words, as they are to the tokenizer, and BREAK is left in.

    Args:
        text: what was written.
        source: what it is called in messages.

    Raises:
        ConfigError: a bracket has no partner or a weight is no number from -10 to 10, at which
            column.
    """
    sections: list[list[_Piece]] = [[]]
    for piece in _Parser(source).parse(text):
        if piece.text is None:
            sections.append([])
        else:
            sections[-1].append(piece)
    weighted = tuple(filter(None, (_make_section(pieces) for pieces in sections)))
    if len(sections) == 1:
        plain_text = _join(sections[0])
    else:
        plain_text = " BREAK ".join(_join(pieces).strip() for pieces in sections)
    return plain_text, weighted or EMPTY_PROMPT


def _make_section(pieces: list[_Piece]) -> PromptSection:
    """Return a section, empty if it has no words."""
    return tuple(
        PromptSpan(piece.text, piece.weight)
        for piece in pieces
        if piece.text and piece.text.strip()
    )


def _join(pieces: list[_Piece]) -> str:
    """Return the text of pieces, with a space where two would become one word."""
    joined = ""
    for piece in pieces:
        text = piece.text or ""
        needs_space = joined and text and not joined[-1].isspace() and not text[0].isspace()
        joined += f" {text}" if needs_space else text
    return joined


def _raise_at(position: TextPosition, bracket: str, problem: str) -> NoReturn:
    raise ConfigError(
        rf"{position}: {bracket!r} {problem}; write \{bracket} for the bracket itself"
    )
