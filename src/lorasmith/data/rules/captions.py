"""Captions that will not teach what they should."""

import re
from collections.abc import Iterator

from lorasmith.data.rules.facts import DatasetFacts, Finding, captions_have, pluralize

TOKENS = 75
"""What CLIP reads of a caption: 77 tokens, of which the first and the last are marks."""
SAME_FROM = 4
"""Fewer pictures may well share one caption."""

_UNITS = re.compile(r"\w+|[^\w\s]")
"""Each of these is one token or more, so that their number is a lower bound."""
_GARBLED = re.compile(r"[ÃÂ][\x80-\xbf]|â€|�")
"""UTF-8 that was read as Latin-1 or Windows-1252, and what replaces unreadable bytes."""


def check_identical_captions(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell when all captions are one and the same."""
    captions = {row.caption for row in facts.scan.rows}
    if len(captions) == 1 and len(facts.scan.rows) >= SAME_FROM:
        yield Finding(
            "same-captions", "advice",
            f"all {len(facts.scan.rows)} captions say {_short(captions.pop())!r}: everything that "
            "the pictures share goes into these words, backgrounds and poses too; describe in each "
            "caption what is not to be learned",
        )  # fmt: skip


def find_long_captions(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell captions whose end the text encoder does not see, and such as make all longer."""
    lengths = {row.key: len(_UNITS.findall(row.caption)) for row in facts.scan.rows}
    room = TOKENS * facts.max_chunks
    cut = [key for key, length in lengths.items() if length > room]
    if cut:
        yield Finding(
            "long-captions", "warning",
            f"{captions_have(len(cut))} more than {room} tokens, and what stands behind them is "
            "not read; put the important words first, shorten it or raise data.max_token_length",
            tuple(cut),
        )  # fmt: skip
        return
    long = [key for key, length in lengths.items() if length > TOKENS]
    if long:
        yield Finding(
            "long-captions", "advice",
            f"{captions_have(len(long))} more than {TOKENS} tokens; all captions are then read in "
            "several chunks, which models are not taught and every step pays for: shorten them, "
            "unless prompts will be as long",
            tuple(long),
        )  # fmt: skip


def find_garbled_captions(facts: DatasetFacts) -> Iterator[Finding]:
    """Tell captions that went through a wrong encoding."""
    bad = [row for row in facts.scan.rows if _GARBLED.search(row.caption)]
    if bad:
        yield Finding(
            "garbled", "warning",
            f"{pluralize(len(bad), 'caption was', 'captions were')} made with a wrong encoding, "
            f"such as {_short(bad[0].caption)!r}; write it again",
            tuple(row.key for row in bad),
        )  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
