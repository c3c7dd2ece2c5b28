"""The pictures of an evaluation's page: the same seeds side by side under different LoRAs."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lorasmith.data.tags import with_another, without_tag
from lorasmith.evaluation.concept import KINDS, Feature
from lorasmith.evaluation.evaluate import Evaluator

_MOST = 8
"""Columns of a table."""
_KIND_NAMES = {"class": "class word", "unrelated": "unrelated", "empty": "empty prompt"}


@dataclass(frozen=True)
class Row:
    """Pictures side by side."""

    label: str
    pictures: Sequence[Image.Image]


@dataclass(frozen=True)
class Scene:
    """A table of pictures; every column is one seed."""

    title: str
    columns: Sequence[str]
    """What stands above each column: a prompt."""
    rows: Sequence[Row]


def feature_scenes(work: Evaluator, one: Feature) -> list[Scene]:
    """Return a tag's pictures: with the tag beside real ones, and without it of each kind."""
    count = len(work.seeds)
    real, _ = one.spread(_MOST)
    prompts = one.tagged(count)
    rows = [
        Row("real pictures", real),
        Row("base model", work.draw(prompts).pictures),
        Row("LoRA", work.draw(prompts, [one]).pictures),
    ]
    scenes = [_scene(f"With the tag: {one.tag}", prompts, rows)]
    for kind in KINDS:
        prompts = one.untagged(kind, count)
        rows = [Row("base model", work.draw(prompts).pictures)]
        if one.gate != "none":
            rows.append(Row("LoRA, gated", work.draw(prompts, [one]).pictures))
        rows.append(Row("LoRA, no gate", work.draw(prompts, [one], gate=False).pictures))
        scenes.append(_scene(f"Without the tag: {_KIND_NAMES[kind]}", prompts, rows))
    return scenes


def pair_scene(
    work: Evaluator, first: Feature, second: Feature, loaded: Sequence[Feature]
) -> Scene:
    """Return base, first, second, both and no tag on the same seeds.

    The prompts of a column differ by the tags only. All LoRAs are loaded, under their gates.
    """
    captions = first.tagged(len(work.seeds))
    plain = [first.plain(caption) for caption in captions]
    other = [without_tag(caption, first.tag, second.tag) for caption in captions]
    both = [with_another(caption, first.tag, second.tag) for caption in captions]
    rows = [
        Row("base model", work.draw(plain).pictures),
        Row(first.tag, work.draw(captions, loaded).pictures),
        Row(second.tag, work.draw(other, loaded).pictures),
        Row(f"{first.tag} + {second.tag}", work.draw(both, loaded).pictures),
        Row("no tag", work.draw(plain, loaded).pictures),
    ]
    return _scene(f"{first.tag} and {second.tag}", plain, rows)


def all_scenes(work: Evaluator, features: Sequence[Feature]) -> list[Scene]:
    """Return the scenes of every pair, then those of each tag."""
    pairs = [
        pair_scene(work, one, other, features)
        for number, one in enumerate(features)
        for other in features[number + 1 :]
    ]
    return [*pairs, *(scene for one in features for scene in feature_scenes(work, one))]


def _scene(title: str, prompts: Sequence[str], rows: Sequence[Row]) -> Scene:
    columns = [prompt or "(nothing)" for prompt in prompts[:_MOST]]
    return Scene(title, columns, [Row(row.label, row.pictures[: len(columns)]) for row in rows])
