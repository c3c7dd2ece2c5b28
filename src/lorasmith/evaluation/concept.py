"""What is evaluated: a tag with its file, real pictures of what it stands for, and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorasmith.config.lora import GateKind
from lorasmith.data.tags import add_tag, remove_tag

UNRELATED_PROMPTS = (
    "a red apple", "a house", "a bicycle", "a sailboat", "a yellow flower", "a key", "a cup of tea",
    "a mountain",
)  # fmt: skip
"""Prompts that have nothing to do with most features."""

PROMPT_KINDS = ("class", "unrelated", "empty")
"""Kinds of prompts without the tag."""


@dataclass(frozen=True)
class EvalConcept:
    """A tag and what it stands for."""

    tag: str
    """What calls it."""
    class_word: str
    """What its pictures show without it; may be empty."""
    file: Path
    """Its LoRA."""
    gate: GateKind
    """What its file says about its gate."""
    images: Sequence[Image.Image]
    """Real pictures of it, at least two."""
    captions: Sequence[str]
    """Theirs, each with the tag."""
    held_out: bool
    """Whether the LoRA was not trained on them; False also where that is unknown."""

    def prompts_with_tag(self, count: int) -> list[str]:
        """Return ``count`` captions with the tag, evenly spread, repeated where there are fewer."""
        distinct = list(dict.fromkeys(self.captions))
        shown = min(count, len(distinct))
        chosen = [distinct[place * len(distinct) // shown] for place in range(shown)]
        return _cycle(chosen, count)

    def prompts_without_tag(self, kind: str, count: int) -> list[str]:
        """Return ``count`` prompts of a kind without the tag.

        ``class`` are those of `tagged` with the class word in the tag's place.
        """
        if kind == "empty":
            return [""] * count
        if kind == "unrelated":
            return _cycle(UNRELATED_PROMPTS, count)
        return [self.remove_tag(caption) for caption in self.prompts_with_tag(count)]

    def sample(self, most: int) -> tuple[list[Image.Image], list[str]]:
        """Return at most so many of its pictures, evenly spread, with their captions."""
        count = min(most, len(self.images))
        places = [number * len(self.images) // count for number in range(count)]
        return [self.images[k] for k in places], [self.captions[k] for k in places]

    def remove_tag(self, caption: str) -> str:
        """Return a caption without the tag."""
        return remove_tag(caption, self.tag, self.class_word)


def joint_prompts(first: EvalConcept, second: EvalConcept, count: int) -> list[str]:
    """Return prompts that ask for two features at once.

    Captions of the first with the second's tag behind its own: "a curlyqx person" becomes
    "a curlyqx cookqz person".
    """
    return [add_tag(text, first.tag, second.tag) for text in first.prompts_with_tag(count)]


def _cycle(texts: Sequence[str], count: int) -> list[str]:
    return [texts[place % len(texts)] for place in range(count)]
