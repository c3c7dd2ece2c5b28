"""Rules about captions, whatever the tag."""

import re
from collections.abc import Iterator

from lorasmith.data.rules.facts import DatasetFacts, Finding, captions_have, pluralize

CHUNK_TOKENS = 75
"""What CLIP reads of a caption at once: 77 tokens without the begin and end tokens."""
MIN_IDENTICAL = 4
"""Fewer images may well share one caption."""

_MIN_TOKENS = re.compile(r"\w+|[^\w\s]")
"""Each match is one token or more, so their number is a lower bound."""
_GARBLED = re.compile(r"[ÃÂ][\x80-\xbf]|â€|�")
"""UTF-8 that was read as Latin-1 or Windows-1252, and what replaces unreadable bytes."""


def check_identical_captions(facts: DatasetFacts) -> Iterator[Finding]:
    captions = {row.caption for row in facts.scan.rows}
    if len(captions) == 1 and len(facts.scan.rows) >= MIN_IDENTICAL:
        yield Finding(
            "same-captions", "advice",
            f"all {len(facts.scan.rows)} captions say {_short(captions.pop())!r}: everything that "
            "the images share goes into these words, backgrounds and poses too; describe in each "
            "caption what the LoRA should not learn",
        )  # fmt: skip


def find_long_captions(facts: DatasetFacts) -> Iterator[Finding]:
    """Find captions that are cut off, or that make all captions longer."""
    lengths = {row.key: len(_MIN_TOKENS.findall(row.caption)) for row in facts.scan.rows}
    limit = CHUNK_TOKENS * facts.max_chunks
    cut = [key for key, length in lengths.items() if length > limit]
    if cut:
        yield Finding(
            "long-captions", "warning",
            f"{captions_have(len(cut))} more than {limit} tokens, and the text encoder does not "
            "read the rest; put the important words first, shorten it or raise "
            "data.max_token_length",
            tuple(cut),
        )  # fmt: skip
        return
    long = [key for key, length in lengths.items() if length > CHUNK_TOKENS]
    if long:
        yield Finding(
            "long-captions", "advice",
            f"{captions_have(len(long))} more than {CHUNK_TOKENS} tokens; all captions are then "
            "read in several chunks, which the model was not trained with and which slows every "
            "step: shorten them, unless prompts will be as long",
            tuple(long),
        )  # fmt: skip


def find_garbled_captions(facts: DatasetFacts) -> Iterator[Finding]:
    garbled = [row for row in facts.scan.rows if _GARBLED.search(row.caption)]
    if garbled:
        yield Finding(
            "garbled", "warning",
            f"{pluralize(len(garbled), 'caption was', 'captions were')} made with a wrong "
            f"encoding, such as {_short(garbled[0].caption)!r}; write it again",
            tuple(row.key for row in garbled),
        )  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
