"""The images on an evaluation's page: the same seeds side by side with different LoRAs."""

from collections.abc import Sequence
from itertools import combinations

from lorasmith.data.caption_tags import add_tag, remove_tag
from lorasmith.evaluation.concept import PROMPT_KINDS, EvalConcept
from lorasmith.evaluation.evaluator import Evaluator
from lorasmith.evaluation.results import ImageRow, ImageTable

_MAX_COLUMNS = 8
_KIND_NAMES = {"class": "class word", "unrelated": "unrelated", "empty": "empty prompt"}


def make_image_tables(evaluator: Evaluator, concepts: Sequence[EvalConcept]) -> list[ImageTable]:
    """Return the tables of every pair of concepts, then those of each concept."""
    pairs = [
        pair_table(evaluator, first, second, concepts)
        for first, second in combinations(concepts, 2)
    ]
    return [
        *pairs,
        *(table for concept in concepts for table in concept_tables(evaluator, concept)),
    ]


def concept_tables(evaluator: Evaluator, concept: EvalConcept) -> list[ImageTable]:
    """Return the images with the trigger word beside real ones, and without it of each kind."""
    count = len(evaluator.seeds)
    real_images, _ = concept.sample(_MAX_COLUMNS)
    prompts = concept.prompts_with_tag(count)
    rows = [
        ImageRow("real images", real_images),
        ImageRow("base model", evaluator.generate(prompts).images),
        ImageRow("LoRA", evaluator.generate(prompts, [concept]).images),
    ]
    tables = [_image_table(f"With the trigger word: {concept.tag}", prompts, rows)]
    for kind in PROMPT_KINDS:
        prompts = concept.prompts_without_tag(kind, count)
        rows = [ImageRow("base model", evaluator.generate(prompts).images)]
        if concept.gate != "none":
            rows.append(ImageRow("LoRA, gated", evaluator.generate(prompts, [concept]).images))
        ungated = evaluator.generate(prompts, [concept], gate=False).images
        rows.append(ImageRow("LoRA, no gate", ungated))
        title = f"Without the trigger word: {_KIND_NAMES[kind]}"
        tables.append(_image_table(title, prompts, rows))
    return tables


def pair_table(
    evaluator: Evaluator, first: EvalConcept, second: EvalConcept, loaded: Sequence[EvalConcept]
) -> ImageTable:
    """Return the images of the base model, the first, the second, both and no trigger word.

    The prompts of a column differ in the trigger words only. All LoRAs are loaded, with gating.
    """
    captions = first.prompts_with_tag(len(evaluator.seeds))
    no_tag = [first.remove_tag(caption) for caption in captions]
    second_tag = [remove_tag(caption, first.tag, second.tag) for caption in captions]
    both_tags = [add_tag(caption, first.tag, second.tag) for caption in captions]
    rows = [
        ImageRow("base model", evaluator.generate(no_tag).images),
        ImageRow(first.tag, evaluator.generate(captions, loaded).images),
        ImageRow(second.tag, evaluator.generate(second_tag, loaded).images),
        ImageRow(f"{first.tag} + {second.tag}", evaluator.generate(both_tags, loaded).images),
        ImageRow("no trigger word", evaluator.generate(no_tag, loaded).images),
    ]
    return _image_table(f"{first.tag} and {second.tag}", no_tag, rows)


def _image_table(title: str, prompts: Sequence[str], rows: Sequence[ImageRow]) -> ImageTable:
    columns = [prompt or "(nothing)" for prompt in prompts[:_MAX_COLUMNS]]
    return ImageTable(
        title, columns, [ImageRow(row.label, row.images[: len(columns)]) for row in rows]
    )
