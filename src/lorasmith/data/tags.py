"""Tags in captions: the words that a LoRA is called by."""

import re
from collections import Counter
from collections.abc import Iterable


def contains_tag(text: str, tag: str) -> bool:
    """Tell whether a tag stands in a text as whole words, in any case (CLIP reads lower case)."""
    words = r"\s+".join(re.escape(word) for word in tag.split())
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """Count the comma-separated parts of captions, the most frequent first."""
    parts = Counter(part.strip() for caption in captions for part in caption.split(","))
    return {part: count for part, count in parts.most_common() if part}
