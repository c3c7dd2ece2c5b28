"""Rows of the wider world: one picture with its captions, from a kind and a number alone."""

import hashlib
import random
from collections.abc import Sequence

import numpy as np
from backgrounds import PHOTOGRAPHIC, draw_background
from compositions import compose
from inputs import Inputs
from pack import Row, encode_picture
from people.attributes import HOLDOUTS, NEVER_DRAWN, Person, sample_holdout, sample_person
from people.captions import person_captions
from people.drawing import draw_person
from people.framing import find_visible, frame_person
from photographs import cut_square, describe_square
from PIL import Image
from textures import draw_dead_leaves, draw_noise

SIDE = 128
COUNTS = {"people": 16000, "composition": 20000, "photograph": 9000, "texture": 3000}
HOLDOUT_COUNT = 30
"""Pictures of each hold-out."""
HOLDOUT_PREFIX = "people-"
GENERATED = "Apache-2.0"
SEE_CREDITS = "see ATTRIBUTION.txt"

Job = tuple[str, int]
"""Kind and number of a row."""


def list_jobs(share: float) -> list[Job]:
    """Return the rows to make; ``share`` is that of the usual number, at least one of a kind."""
    counts = dict(COUNTS)
    for name in HOLDOUTS:
        if name != NEVER_DRAWN:
            counts[f"{HOLDOUT_PREFIX}{name}"] = HOLDOUT_COUNT
    return [
        (kind, index)
        for kind, count in counts.items()
        for index in range(max(1, round(count * share)))
    ]


def make_row(inputs: Inputs, job: Job) -> tuple[Row, bytes]:
    """Make one row and its AVIF file."""
    kind, index = job
    image, row = draw_row(inputs, kind, index)
    return row, encode_picture(np.asarray(image.convert("RGB")))


def draw_row(inputs: Inputs, kind: str, index: int) -> tuple[Image.Image, Row]:
    """Draw a picture and write its captions."""
    digest = hashlib.sha256(f"{kind}/{index}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    if kind == "people":
        return _make_person(inputs, kind, index, sample_person(rng), rng)
    if kind.startswith(HOLDOUT_PREFIX):
        name = kind.removeprefix(HOLDOUT_PREFIX)
        image, row = _make_person(inputs, kind, index, sample_holdout(name, rng), rng)
        row["role"], row["holdout"] = "holdout", name
        return image, row
    if kind == "composition":
        made = compose(inputs.emoji, SIDE, rng, inputs.photographs)
        licences = [SEE_CREDITS if name == PHOTOGRAPHIC else name for name in made.licences]
        row = _describe(kind, index, made.captions, made.kind, " AND ".join(licences))
        return made.image, row
    if kind == "photograph":
        photograph = rng.choice(inputs.photographs)
        image, share = cut_square(photograph.image, SIDE, rng)
        captions = describe_square(photograph.subject, share)
        return image, _describe(kind, index, captions, photograph.subject, SEE_CREDITS)
    image = draw_dead_leaves(SIDE, rng) if rng.random() < 0.6 else draw_noise(SIDE, rng)
    return image, _describe(kind, index, ["an abstract texture"], "texture", GENERATED)


def _make_person(
    inputs: Inputs, kind: str, index: int, person: Person, rng: random.Random
) -> tuple[Image.Image, Row]:
    white_share = 0.0 if person.vanishes_on_white else 0.45
    background, words = draw_background(SIDE, rng, inputs.photographs, white_share)
    frame = frame_person(person, rng)
    figure = draw_person(person, SIDE, frame)
    background.paste(figure, (0, 0), figure)
    captions = person_captions(person, find_visible(person, frame), words, rng)
    licence = SEE_CREDITS if words == PHOTOGRAPHIC else GENERATED
    return background, _describe(kind, index, captions, person.kind, licence)


def _describe(kind: str, index: int, captions: Sequence[str], name: str, licence: str) -> Row:
    texts = list(dict.fromkeys(captions))
    return Row(
        id=0,
        style=kind,
        role="base",
        codepoint=None,
        name=name,
        caption=texts[0],
        captions=texts,
        keywords=[],
        colours=[],
        group=kind,
        subgroup="",
        tone=0,
        style_phrase="",
        style_desc="",
        licence=licence,
        licensor="",
        package="",
        icon=f"{index:05d}",
        also=[],
        off=0,
        len=0,
        holdout="",
    )
