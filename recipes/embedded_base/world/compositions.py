"""Pictures of one or two things on a background, and their captions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from backgrounds import PHOTOGRAPHIC, draw_background
from grammar import pluralize, with_article
from photographs import Photograph
from PIL import Image
from things import LINE_ART, Emoji, Thing, choose_thing, cut_emoji, draw_person_thing, fit

KINDS = {
    "single": 42,
    "close-up": 10,
    "pair": 24,
    "two of a kind": 8,
    "person and thing": 10,
    "two people": 6,
}
"""Kinds of compositions, and how often each is made, in percent."""
PLACES: dict[tuple[float, float], str] = {
    (0.0, 0.5): "on the left",
    (1.0, 0.5): "on the right",
    (0.5, 0.0): "at the top",
    (0.5, 1.0): "at the bottom",
}


@dataclass(frozen=True)
class Composition:
    """A finished picture and its captions."""

    image: Image.Image
    captions: list[str]
    kind: str
    licences: tuple[str, ...]
    """Of everything that is in the picture."""


@dataclass(frozen=True)
class Background:
    """A background that things are pasted on."""

    image: Image.Image
    words: str
    """'blue background'."""

    def paste(self, image: Image.Image, x: float, y: float) -> None:
        """Paste an RGBA image with its upper left corner at a place in pixels."""
        self.image.paste(image, (round(x), round(y)), image)


def compose(
    emoji: Sequence[Emoji],
    side: int,
    rng: random.Random,
    photographs: Sequence[Photograph],
    kind: str | None = None,
) -> Composition:
    """Return a composition.

    Args:
        emoji: rows to choose from.
        side: side in pixels.
        rng: chooses everything.
        photographs: for photographic backgrounds.
        kind: a key of `KINDS`; None for a random one.
    """
    drawn_kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    kind = kind or drawn_kind
    white_share = 0.12 if kind in ("single", "close-up") else 0.35
    background = Background(*draw_background(side, rng, photographs, white_share))
    if kind == "single":
        things = [choose_thing(emoji, rng)]
        captions = _place_single(things[0], background, rng)
    elif kind == "close-up":
        things = [choose_thing(emoji, rng)]
        captions = _place_close_up(things[0], background, rng)
    elif kind == "two of a kind":
        things = [cut_emoji(rng.choice(emoji))]
        captions = _place_twice(things[0], background, rng)
    elif kind == "pair":
        things = _choose_pair(emoji, rng)
        captions = _place_pair(things, background, rng)
    else:
        things = [draw_person_thing(rng, side)]
        with_thing = kind == "person and thing"
        things.append(choose_thing(emoji, rng) if with_thing else draw_person_thing(rng, side))
        if rng.random() < 0.5:
            things.reverse()
        captions = _place_pair(things, background, rng, sideways=True)
    licences = {thing.licence for thing in things}
    if background.words == PHOTOGRAPHIC:
        licences.add(PHOTOGRAPHIC)
    return Composition(background.image, captions, kind, tuple(sorted(licences)))


def _place_single(thing: Thing, background: Background, rng: random.Random) -> list[str]:
    side, words = background.image.width, background.words
    size = round(side * rng.uniform(0.42, 0.88))
    image = fit(thing.image, size)
    center = (0.5, 0.5)
    place = rng.choice((center, center, *PLACES))
    if size > side * 0.62:
        place = center
    corner = []
    for room, share in zip((side - image.width, side - image.height), place, strict=True):
        start = room * (0.06 + 0.88 * share) + rng.uniform(-side * 0.03, side * 0.03)
        corner.append(min(max(start, 0), room))
    background.paste(image, corner[0], corner[1])
    where = [PLACES[place]] if place in PLACES else []
    small = ["small"] if size < side * 0.5 else []
    end = "" if thing.style == LINE_ART else f", {thing.style}"
    located = " ".join([thing.phrase, *where])
    return [
        f"{located}, {words}{end}",
        ", ".join([*thing.tags, thing.style, *where, *small, words]),
        ", ".join([f"{thing.phrase} on {with_article(words)}", *where]) + end,
        f"{thing.phrase}{end}, {words}",
        ", ".join([words, *thing.tags, thing.style]),
    ]


def _place_close_up(thing: Thing, background: Background, rng: random.Random) -> list[str]:
    side, words = background.image.width, background.words
    image = fit(thing.image, round(side * rng.uniform(1.25, 1.9)))
    x = -(image.width - side) * rng.uniform(0.25, 0.75)
    y = -(image.height - side) * rng.uniform(0.1, 0.6)
    background.paste(image, x, y)
    end = "" if thing.style == LINE_ART else f", {thing.style}"
    return [
        f"a close-up of {thing.phrase}, {words}{end}",
        ", ".join(["close-up", *thing.tags, thing.style, words]),
        f"{thing.phrase}, close-up{end}, {words}",
    ]


def _place_twice(thing: Thing, background: Background, rng: random.Random) -> list[str]:
    side, words, style = background.image.width, background.words, thing.style
    image = fit(thing.image, round(side * rng.uniform(0.38, 0.47)))
    for center in (0.27, 0.73):
        x = side * (center + rng.uniform(-0.02, 0.02)) - image.width / 2
        y = side * (0.5 + rng.uniform(-0.12, 0.12)) - image.height / 2
        background.paste(image, x, y)
    plural = pluralize(thing.phrase)
    subject = f"two {plural}" if plural else f"two pictures of {thing.phrase}"
    return [
        f"{subject}, {words}, {style}",
        f"{subject} side by side on {with_article(words)}, {style}",
        f"{style}, {words}, {subject}",
    ]


def _choose_pair(emoji: Sequence[Emoji], rng: random.Random) -> list[Thing]:
    """Return two different emoji of one style."""
    style = rng.choice(emoji).style_phrase
    same = [row for row in rng.sample(emoji, min(400, len(emoji))) if row.style_phrase == style]
    first, second = rng.choice(same or emoji), rng.choice(same or emoji)
    while second.caption == first.caption and any(row.caption != first.caption for row in same):
        second = rng.choice(same)
    return [cut_emoji(first), cut_emoji(second)]


def _place_pair(
    things: Sequence[Thing], background: Background, rng: random.Random, sideways: bool = False
) -> list[str]:
    side = background.image.width
    beside = sideways or rng.random() < 0.75
    sizes = [round(side * rng.uniform(0.4, 0.62 if sideways else 0.5)) for _ in things]
    for thing, size, center in zip(things, sizes, (0.26, 0.74), strict=True):
        image = fit(thing.image, size, max_width=round(side * 0.48))
        along = side * (center + rng.uniform(-0.03, 0.03))
        across = side * (rng.uniform(0.5, 0.62) if beside else rng.uniform(0.42, 0.58))
        x, y = (along, across) if beside else (across, along)
        background.paste(image, x - image.width / 2, y - image.height / 2)
    return _describe_pair(things[0], things[1], background.words, beside)


def _describe_pair(first: Thing, second: Thing, words: str, beside: bool) -> list[str]:
    relation, inverse = ("left of", "right of") if beside else ("above", "below")
    styles = list(dict.fromkeys([first.style, second.style]))
    end = f", {styles[0]}" if len(styles) == 1 and styles[0] != LINE_ART else ""
    return [
        f"{first.phrase} {relation} {second.phrase}, {words}{end}",
        f"{second.phrase} {inverse} {first.phrase}, {words}{end}",
        f"{first.phrase} and {second.phrase}, {words}{end}",
        ", ".join([*_join_tags(first, second), *styles, words]),
        f"{first.phrase} {relation} {second.phrase}, on {with_article(words)}{end}",
    ]


def _join_tags(first: Thing, second: Thing) -> list[str]:
    if first.is_person and first.tags[0] == second.tags[0]:
        count = first.tags[0].replace("1", "2") + "s"
        return [count, *first.tags[1:], *second.tags[1:]]
    return [*first.tags, *second.tags]
