"""CLIP byte-pair tokenizers from a full or truncated merge list.

The vocabulary is laid out as CLIP's (Radford et al. 2021): 256 byte symbols, the same with the
end-of-word mark, one entry per merge, and the two special tokens.
"""

import lzma
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.core.errors import DataError
from lorasmith.core.regular_files import read_regular_file

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
SHIPPED = Path(__file__).parent / "clip" / "merges.txt.xz"
"""CLIP's full merge list, which all Stable Diffusion models use."""
_MAX_MERGES_BYTES = 2**26
_FIXED = 512 + 2
"""Tokens that are not merges: the byte symbols, twice, and two special tokens."""


def read_merges(path: Path, count: int | None = None) -> list[tuple[str, str]]:
    """Read the first ``count`` merges of a CLIP merge list (a ``#version`` line is skipped).

    Raises:
        DataError: the file is missing, has a malformed line or too few merges.
    """
    try:
        lines = read_regular_file(path, _MAX_MERGES_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a merge list ({error})") from error
    if lines and "#version" in lines[0]:
        lines = lines[1:]
    pairs = [tuple(line.split()) for line in lines if line]
    merges = pairs if count is None else pairs[:count]
    malformed = [pair for pair in merges if len(pair) != 2]
    if malformed:
        raise DataError(f"{path}: {' '.join(malformed[0])!r} is not a merge (two symbols a line)")
    if count is not None and len(merges) < count:
        raise DataError(f"{path}: has {len(merges)} merges, fewer than the required {count}")
    return [(pair[0], pair[1]) for pair in merges]


@cache
def _shipped_merges() -> tuple[tuple[str, str], ...]:
    lines = lzma.decompress(SHIPPED.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split() for line in lines)
    return tuple((first, second) for first, second in pairs)


def create_clip_tokenizer(vocabulary: int, pad_token: str = END) -> "CLIPTokenizer":
    """Return CLIP's tokenizer with a vocabulary of a size: 49,408 for published models.

    A smaller vocabulary has only the first merges, as the embedded model's.

    Raises:
        DataError: CLIP has no vocabulary of that size.
    """
    merges = _shipped_merges()
    if not _FIXED <= vocabulary <= _FIXED + len(merges):
        raise DataError(
            f"a vocabulary of {vocabulary:,} is not CLIP's, which has {_FIXED + len(merges):,} "
            "tokens; tokens that were added to a model are not supported"
        )
    tokenizer = create_bpe_tokenizer(list(merges[: vocabulary - _FIXED]))
    tokenizer.pad_token = pad_token
    return tokenizer


def create_bpe_tokenizer(
    merges: list[tuple[str, str]],
    vocabulary: Mapping[str, int] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    max_length: int = MAX_LENGTH,
) -> "CLIPTokenizer":
    """Return a CLIPTokenizer.

    Args:
        merges: pairs of symbols.
        vocabulary: ids of all tokens; None lays out ``512 + len(merges) + 2`` tokens as CLIP does.
        special_tokens: texts of ``bos``, ``eos``, ``pad`` and ``unk`` that are not CLIP's.
        max_length: positions.
    """
    from transformers import CLIPTokenizer

    if vocabulary is None:
        symbols = _byte_symbols()
        words = (symbol + "</w>" for symbol in symbols)
        tokens = [*symbols, *words, *("".join(m) for m in merges), START, END]
        vocabulary = {token: i for i, token in enumerate(tokens)}
    special = {"unk": END, "bos": START, "eos": END, "pad": END, **(special_tokens or {})}
    # The constructor ignores vocab_file and merges_file in transformers 5; it wants the objects.
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=merges,
        **{f"{name}_token": token for name, token in special.items()},
        model_max_length=max_length,
    )


def _byte_symbols() -> list[str]:
    """Return the 256 printable stand-ins for bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other_bytes = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(other_bytes))]
