"""What can be said about a dataset before training: one rule, one function."""

from collections.abc import Callable, Iterable

from lorasmith.data.rules.captions import garbled, long_captions, same_captions
from lorasmith.data.rules.duplicates import duplicates, near_duplicates
from lorasmith.data.rules.facts import Facts, Finding
from lorasmith.data.rules.files import files
from lorasmith.data.rules.pictures import blank, cropped, few_pictures, tiny, transparent
from lorasmith.data.rules.tag import tag_company, tag_missing, tag_spelling

RULES: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    files, tag_missing, tag_spelling, same_captions, tag_company, long_captions, garbled,
    duplicates, near_duplicates, tiny, cropped, blank, transparent, few_pictures,
)  # fmt: skip
"""Every rule that needs no model, in the order in which people read them."""

__all__ = ["RULES", "Facts", "Finding"]
