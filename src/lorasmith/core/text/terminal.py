"""Text on a terminal: without characters that steer it, and not endless."""

import unicodedata

_KEPT = "\u200c\u200d"
"""Joiners, which emoji and several scripts need."""
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control, format (such as overrides of the direction of writing), surrogates, line ends."""


def escape_control_characters(text: str, kept: str = "") -> str:
    """Replace characters that could steer a terminal by their escapes, such as ``\\x1b``.

    Args:
        text: any text.
        kept: control characters that stay, such as a line break.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if is_unsafe(char) and char not in kept else char for char in text)


def shorten(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters; the middle of a longer one is left out."""
    if len(text) <= limit:
        return text
    end = (limit - 3) // 3
    return f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"


def is_unsafe(char: str) -> bool:
    """Return whether a character could steer a terminal, or is no character."""
    return unicodedata.category(char) in _UNSAFE and char not in _KEPT


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
