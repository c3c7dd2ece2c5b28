"""What is evaluated: a LoRA's trigger word with real images of its concept, and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorasmith.config.lora import GateKind
from lorasmith.data.caption_tags import add_tag, remove_tag

UNRELATED_PROMPTS = (
    "a red apple", "a house", "a bicycle", "a sailboat", "a yellow flower", "a key", "a cup of tea",
    "a mountain",
)  # fmt: skip
"""Prompts that have nothing to do with most concepts."""

PROMPT_KINDS = ("class", "unrelated", "empty")
"""Kinds of prompts without the trigger word."""


@dataclass(frozen=True)
class EvalConcept:
    """A trigger word (tag) and what it stands for."""

    tag: str
    class_word: str
    """What its images show without it; may be empty."""
    file: Path
    """Its LoRA."""
    gate: GateKind
    """The file's kind of gate."""
    images: Sequence[Image.Image]
    """Real images of it, at least two."""
    captions: Sequence[str]
    """Of each image, with the trigger word."""
    held_out: bool
    """Whether the LoRA was not trained on them; False also if that is unknown."""

    def prompts_with_tag(self, count: int) -> list[str]:
        """Return ``count`` captions, evenly spaced, repeated if there are fewer."""
        distinct = list(dict.fromkeys(self.captions))
        num_distinct = min(count, len(distinct))
        spaced = [distinct[i * len(distinct) // num_distinct] for i in range(num_distinct)]
        return _cycle(spaced, count)

    def prompts_without_tag(self, kind: str, count: int) -> list[str]:
        """Return ``count`` prompts of a kind without the trigger word.

        ``class`` are those of `prompts_with_tag` with the class word in its place.
        """
        if kind == "empty":
            return [""] * count
        if kind == "unrelated":
            return _cycle(UNRELATED_PROMPTS, count)
        return [self.remove_tag(caption) for caption in self.prompts_with_tag(count)]

    def sample(self, max_images: int) -> tuple[list[Image.Image], list[str]]:
        """Return at most ``max_images`` of its images, evenly spaced, with their captions."""
        count = min(max_images, len(self.images))
        indices = [i * len(self.images) // count for i in range(count)]
        return [self.images[i] for i in indices], [self.captions[i] for i in indices]

    def remove_tag(self, caption: str) -> str:
        """Return a caption with the class word in place of the trigger word."""
        return remove_tag(caption, self.tag, self.class_word)


def joint_prompts(first: EvalConcept, second: EvalConcept, count: int) -> list[str]:
    """Return prompts with two trigger words.

    Captions of the first with the second's trigger word after its own: "a curlyqx person" becomes
    "a curlyqx cookqz person".
    """
    prompts = first.prompts_with_tag(count)
    return [add_tag(prompt, first.tag, second.tag) for prompt in prompts]


def _cycle(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[i % len(prompts)] for i in range(count)]
