"""Things that pictures are composed of: cut-out emoji, line drawings, recolored ones, people."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from colours import COLOURS, main_colours
from cutouts import cut_out, line_drawing, recolor
from grammar import mend_article, strip_article, with_article
from pack import decode_picture
from people.attributes import Person, sample_person
from people.captions import person_phrase, short_person_tags
from people.drawing import draw_person
from people.framing import find_visible, frame_figure
from PIL import Image

GROUPS = frozenset(
    {
        "animals & nature",
        "food & drink",
        "objects",
        "travel & places",
        "activities",
        "people & body",
        "smileys & emotion",
        "",
    }
)
"""Groups of emoji that pictures are composed of: no flags, no symbols."""
LINE_ART = "line art"

_COLOR_WORD = re.compile(rf"\b({'|'.join(COLOURS)}|blond|blonde|grey|gold|silver|skin tone)\b")
_COLOR_PREFIX = re.compile(rf"^({'|'.join(COLOURS)}) (?=\w)")


@dataclass(frozen=True)
class Emoji:
    """A row of the emoji pack, its picture still compressed."""

    data: bytes
    caption: str
    style_phrase: str
    group: str
    licence: str

    def decode(self) -> npt.NDArray[np.uint8]:
        """Return the picture, uint8 ``[H, W, 3]``."""
        return decode_picture(self.data)


@dataclass(frozen=True)
class Thing:
    """A cut-out thing with its words."""

    image: Image.Image
    phrase: str
    """'a red apple'."""
    tags: tuple[str, ...]
    """'red apple', or '1girl', 'black hair' ..."""
    style: str
    """'noto style', 'line art'."""
    licence: str

    @property
    def is_person(self) -> bool:
        """Whether it is a drawn person."""
        return self.tags[0] in ("1girl", "1boy")


def choose_thing(emoji: Sequence[Emoji], rng: random.Random) -> Thing:
    """Return a random emoji as it is, as a line drawing, or in another color."""
    row = rng.choice(emoji)
    chance = rng.random()
    if chance < 0.12:
        return _draw_lines(row)
    if chance < 0.24:
        return _recolor(row, rng)
    return cut_emoji(row)


def cut_emoji(row: Emoji) -> Thing:
    """Return an emoji without its background."""
    phrase = mend_article(row.caption.split(",")[0])
    noun = strip_article(phrase)
    return Thing(cut_out(row.decode()), phrase, (noun,), row.style_phrase, row.licence)


def draw_person_thing(rng: random.Random, side: int) -> Thing:
    """Return a whole drawn person, cropped to its bounds."""
    person = _sample_figure(rng)
    frame = frame_figure(person)
    image = draw_person(person, side, frame)
    visible = find_visible(person, frame)
    return Thing(
        image.crop(image.getchannel("A").getbbox()),
        person_phrase(person, visible),
        tuple(short_person_tags(person, visible)),
        person.rendering,
        "Apache-2.0",
    )


def fit(image: Image.Image, size: int, max_width: int | None = None) -> Image.Image:
    """Return an RGBA image scaled so that its longer side is ``size`` pixels."""
    factor = size / max(image.size)
    if max_width is not None:
        factor = min(factor, max_width / image.width)
    target = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # Premultiplied, so that the color of transparent pixels does not bleed.
    return image.convert("RGBa").resize(target, Image.Resampling.LANCZOS).convert("RGBA")


def _draw_lines(row: Emoji) -> Thing:
    thing = cut_emoji(row)
    noun = _drop_color(thing.tags[0])
    if not noun:
        return thing
    phrase = thing.phrase if noun == thing.tags[0] else with_article(noun)
    lines = line_drawing(thing.image)
    return Thing(lines, f"a line drawing of {phrase}", (noun,), LINE_ART, thing.licence)


def _recolor(row: Emoji, rng: random.Random) -> Thing:
    shift = rng.randint(30, 226)
    thing = cut_emoji(row)
    noun = _drop_color(thing.tags[0])
    # A person of another color would have green skin.
    if not noun or row.group == "people & body" or thing.phrase == thing.tags[0]:
        return thing
    turned = recolor(thing.image, shift)
    white = Image.new("RGB", turned.size, (255, 255, 255))
    white.paste(turned, mask=turned)
    colors = [
        name for name in main_colours(np.asarray(white)) if name not in ("black", "gray", "white")
    ]
    if not colors:
        return thing
    noun = f"{colors[0]} {noun}"
    return Thing(turned, with_article(noun), (noun,), thing.style, thing.licence)


def _drop_color(noun: str) -> str:
    """Return a noun without the color in front, or '' if it names a color elsewhere."""
    plain = _COLOR_PREFIX.sub("", noun)
    return "" if _COLOR_WORD.search(plain) else plain


def _sample_figure(rng: random.Random) -> Person:
    while True:
        person = sample_person(rng)
        if person.framing == "full body" and person.pose != "pointing":
            return person
