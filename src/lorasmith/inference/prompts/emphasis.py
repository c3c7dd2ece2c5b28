r"""Emphasis in prompts: ``(word)``, ``(word:1.2)``, ``[word]``, ``BREAK`` and ``\(``.

Round brackets multiply a weight by 1.1 or by the number at their end, square ones divide it by 1.1;
brackets within brackets multiply. BREAK begins a new chunk.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.lora_request import TextPosition
from lorasmith.models.text.prompt_spans import (
    EMPTY_PROMPT,
    PromptSection,
    PromptSpan,
    WeightedPrompt,
    join_spans,
)

BRACKET_FACTOR = 1.1
MAX_EMPHASIS = 10.0
MAX_PRODUCT = 1000.0
"""Largest weight that nested brackets may multiply to."""
MAX_DEPTH = 100
"""How many brackets may be open at once; this also keeps the work linear."""

_MARK = re.compile(r"\\[()\[\]\\]|[()\[\]]|\bBREAK\b")
"""An escaped character, a bracket, or BREAK; everything else is text."""
_NUMBER_LIKE = re.compile(r"[-+.\d][-+.\deE]*")
"""What is meant as a number, though it may be malformed."""
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
    """Parses a text mark by mark, in time linear in its length."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._pieces: list[_Piece] = []
        self._texts: list[str] = []
        """Text since the last mark."""
        self._open_brackets: list[_OpenBracket] = []

    def parse(self, text: str) -> list[_Piece]:
        end = 0
        for match in _MARK.finditer(text):
            self._texts.append(text[end : match.start()])
            self._read_mark(match[0], TextPosition(self._source, match.start() + 1))
            end = match.end()
        self._texts.append(text[end:])
        if self._open_brackets:
            unclosed = self._open_brackets[-1]
            _raise_at(unclosed.position, unclosed.bracket, "is not closed")
        self._flush()
        return self._pieces

    def _read_mark(self, mark: str, position: TextPosition) -> None:
        if mark[0] == "\\":
            self._texts.append(mark[1])
        elif mark in ("(", "["):
            self._open_bracket(mark, position)
        elif mark in (")", "]"):
            self._close_bracket(mark, position)
        else:
            self._flush()
            self._pieces.append(_Piece(None))

    def _open_bracket(self, bracket: str, position: TextPosition) -> None:
        if len(self._open_brackets) == MAX_DEPTH:
            raise ConfigError(
                f"{position}: more than {MAX_DEPTH} brackets within brackets; write the weight as "
                "a number, (word:1.2)"
            )
        self._flush()
        self._open_brackets.append(_OpenBracket(bracket, position, len(self._pieces)))

    def _close_bracket(self, bracket: str, position: TextPosition) -> None:
        if not self._open_brackets or self._open_brackets[-1].bracket != _OPENING_OF[bracket]:
            _raise_at(position, bracket, "closes nothing")
        opening = self._open_brackets.pop()
        text = "".join(self._texts)
        if bracket == ")":
            factor, text = _split_weight(text, position)
        else:
            _refuse_scheduling(text, position)
            factor = 1 / BRACKET_FACTOR
        self._texts = [text]
        self._flush()
        for piece in self._pieces[opening.first_piece :]:
            piece.weight *= factor
            if abs(piece.weight) > MAX_PRODUCT:
                raise ConfigError(
                    f"{position}: brackets within brackets multiply to {piece.weight:g}, more than "
                    f"{MAX_PRODUCT:g}; leave some out"
                )

    def _flush(self) -> None:
        if text := "".join(self._texts):
            self._pieces.append(_Piece(text))
        self._texts = []


def _split_weight(text: str, position: TextPosition) -> tuple[float, str]:
    """Return what round brackets multiply by, and their text without the number.

    Args:
        text: what stands before the closing bracket, back to the last mark.
        position: the closing bracket's.
    """
    before, colon, number = text.rpartition(":")
    start = position.shifted(-len(number.lstrip()))
    number = number.strip()
    if not colon or not _NUMBER_LIKE.fullmatch(number):
        return BRACKET_FACTOR, text
    try:
        weight = float(number)
    except ValueError as error:
        raise ConfigError(
            f"{start}: {number!r} is not a number; write it like (word:1.2)"
        ) from error
    if not math.isfinite(weight) or abs(weight) > MAX_EMPHASIS:
        raise ConfigError(
            f"{start}: emphasis {weight:g} is not between -{MAX_EMPHASIS:g} and {MAX_EMPHASIS:g}"
        )
    return weight, before


def _refuse_scheduling(text: str, position: TextPosition) -> None:
    _, colon, number = text.rpartition(":")
    if "|" in text or (colon and re.fullmatch(r"[\d.]+", number.strip())):
        raise ConfigError(
            f"{position}: prompts that change between steps ([from:to:0.5], [one|other]) are "
            r"not supported; write (word:0.8) for a weight, \[ and \] for plain brackets"
        )


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
    return join_spans([piece.text or "" for piece in pieces])[0]


def _raise_at(position: TextPosition, bracket: str, problem: str) -> NoReturn:
    raise ConfigError(
        rf"{position}: {bracket!r} {problem}; write \{bracket} for the bracket itself"
    )
