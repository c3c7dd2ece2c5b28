"""The package's errors. The command line prints each as a single line.

A message says what is wrong, where, and what to do about it.
"""

import difflib
from collections.abc import Iterable

_LONGEST_WORD = 200


class LorasmithError(Exception):
    """Base class of the errors that lorasmith raises."""


class ConfigError(LorasmithError):
    """A setting is unknown, missing or out of range. The message names the field."""


class DataError(LorasmithError):
    """An image, caption or dataset cannot be used. The message names the file."""


class WeightsError(LorasmithError):
    """A model or LoRA file is missing, damaged or does not fit. Names keys and counts."""


class OutputError(LorasmithError):
    """A result cannot be written. The message names the path."""


class TrainingError(LorasmithError):
    """A run cannot continue (a loss that is not finite, a collapsed model)."""


class LorasmithWarning(UserWarning):
    """Something the user should know that does not stop a run."""


class InactiveLoraWarning(LorasmithWarning):
    """A requested LoRA is not active because its trigger word is not in the prompt."""


def close_matches(
    word: str, known: Iterable[str], limit: int = 3, cutoff: float = 0.6
) -> list[str]:
    """Return the known words closest to ``word``, none for a very long one."""
    if len(word) > _LONGEST_WORD:  # the comparison takes quadratic time
        return []
    return difflib.get_close_matches(word, list(known), n=limit, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean a, b?"`` for names close to ``word``, or an empty string."""
    close = close_matches(word, known, limit)
    return f"; did you mean {', '.join(close)}?" if close else ""
