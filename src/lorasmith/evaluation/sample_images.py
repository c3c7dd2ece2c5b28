"""The pictures of an evaluation's page: the same seeds side by side under different LoRAs."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lorasmith.data.tags import add_tag, remove_tag
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept
from lorasmith.evaluation.evaluator import Evaluator

_MOST = 8
"""Columns of a table."""
_KIND_NAMES = {"class": "class word", "unrelated": "unrelated", "empty": "empty prompt"}


@dataclass(frozen=True)
class ImageRow:
    """Pictures side by side."""

    label: str
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class ImageTable:
    """A table of pictures; every column is one seed."""

    title: str
    columns: Sequence[str]
    """What stands above each column: a prompt."""
    rows: Sequence[ImageRow]


def concept_tables(work: Evaluator, one: EvalConcept) -> list[ImageTable]:
    """Return a tag's pictures: with the tag beside real ones, and without it of each kind."""
    count = len(work.seeds)
    real, _ = one.sample(_MOST)
    prompts = one.prompts_with_tag(count)
    rows = [
        ImageRow("real pictures", real),
        ImageRow("base model", work.generate(prompts).images),
        ImageRow("LoRA", work.generate(prompts, [one]).images),
    ]
    scenes = [_image_table(f"With the tag: {one.tag}", prompts, rows)]
    for kind in PROMPT_KINDS:
        prompts = one.prompts_without_tag(kind, count)
        rows = [ImageRow("base model", work.generate(prompts).images)]
        if one.gate != "none":
            rows.append(ImageRow("LoRA, gated", work.generate(prompts, [one]).images))
        rows.append(ImageRow("LoRA, no gate", work.generate(prompts, [one], gate=False).images))
        scenes.append(_image_table(f"Without the tag: {_KIND_NAMES[kind]}", prompts, rows))
    return scenes


def pair_table(
    work: Evaluator, first: EvalConcept, second: EvalConcept, loaded: Sequence[EvalConcept]
) -> ImageTable:
    """Return base, first, second, both and no tag on the same seeds.

    The prompts of a column differ by the tags only. All LoRAs are loaded, under their gates.
    """
    captions = first.prompts_with_tag(len(work.seeds))
    plain = [first.remove_tag(caption) for caption in captions]
    other = [remove_tag(caption, first.tag, second.tag) for caption in captions]
    both = [add_tag(caption, first.tag, second.tag) for caption in captions]
    rows = [
        ImageRow("base model", work.generate(plain).images),
        ImageRow(first.tag, work.generate(captions, loaded).images),
        ImageRow(second.tag, work.generate(other, loaded).images),
        ImageRow(f"{first.tag} + {second.tag}", work.generate(both, loaded).images),
        ImageRow("no tag", work.generate(plain, loaded).images),
    ]
    return _image_table(f"{first.tag} and {second.tag}", plain, rows)


def make_image_tables(work: Evaluator, features: Sequence[EvalConcept]) -> list[ImageTable]:
    """Return the scenes of every pair, then those of each tag."""
    pairs = [
        pair_table(work, one, other, features)
        for number, one in enumerate(features)
        for other in features[number + 1 :]
    ]
    return [*pairs, *(scene for one in features for scene in concept_tables(work, one))]


def _image_table(title: str, prompts: Sequence[str], rows: Sequence[ImageRow]) -> ImageTable:
    columns = [prompt or "(nothing)" for prompt in prompts[:_MOST]]
    return ImageTable(
        title, columns, [ImageRow(row.label, row.images[: len(columns)]) for row in rows]
    )
