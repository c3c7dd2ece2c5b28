"""Captions of a drawn person, as comma-separated tags and as sentences."""

import random
from collections.abc import Sequence

from grammar import join_words, with_article

from people.attributes import UNCOLORED, Person
from people.framing import Visible
from people.plan import plan_body

HAIR_PHRASES = {
    "short hair": "short {} hair",
    "bob cut": "a {} bob cut",
    "long hair": "long {} hair",
    "twin tails": "{} twin tails",
    "ponytail": "a {} ponytail",
    "hair bun": "{} hair in a bun",
    "double bun": "{} hair in two buns",
    "spiky hair": "spiky {} hair",
    "braids": "{} braids",
}
POSE_PHRASES = {
    "standing": "standing",
    "waving": "waving",
    "arms up": "with both arms up",
    "hands on hips": "with hands on hips",
    "arms behind back": "with arms behind the back",
    "walking": "walking",
    "pointing": "pointing to the side",
}
RENDERING_PHRASES = {
    "flat color": "drawing",
    "outlined": "cartoon",
    "line art": "line drawing",
    "shaded": "softly shaded drawing",
}
FRINGE_TAGS = {
    "straight": "straight bangs",
    "parted": "parted bangs",
    "side": "swept bangs",
    "pointed": "choppy bangs",
}
TELLING_DEPTH = {
    "overalls": 0.14,
    "coat": 0.12,
    "raincoat": 0.12,
    "sweater": 0.12,
    "pajamas": 0.13,
    "lab coat": 0.12,
}
"""How far below the neck an outfit must be seen to tell it from others; 0 where its collar does."""
DETAILS = {
    "overalls": ("shirt", 0.12),
    "sweater": ("stripes", 0.12),
    "kimono": ("sash", 0.0),
    "pajamas": ("dots", 0.13),
    "suit": ("tie", 0.1),
}
"""What has an outfit's second color, and how far below the neck it is; the sash is at the waist."""


def person_captions(
    person: Person, visible: Visible, background: str, rng: random.Random
) -> list[str]:
    """Return six captions, the first with all tags in order.

    Args:
        person: who is drawn.
        visible: what the picture shows of it.
        background: 'red background'.
        rng: chooses and shuffles tags.
    """
    tags = person_tags(person, visible)
    shuffled = [tags[0], *rng.sample(tags[1:], len(tags) - 1)]
    few = [tags[0], *(tag for tag in tags[1:] if rng.random() < 0.55)]
    sentence = person_sentence(person, visible)
    medium = RENDERING_PHRASES[person.rendering]
    framed = {
        "full body": f"a full-body {medium} of {sentence}",
        "upper body": f"{sentence}, {medium}, from the waist up",
        "portrait": f"a portrait of {sentence}, {medium}",
    }[person.framing]
    return [
        ", ".join([*tags, background]),
        ", ".join([*shuffled, background]),
        ", ".join([*few, background]),
        f"{framed}, {background}",
        f"{sentence}, on {with_article(background)}",
        f"{with_article(medium)} of {sentence}",
    ]


def person_tags(person: Person, visible: Visible) -> list[str]:
    """Return tags for all that can be seen but the background, in the order people write them."""
    tags = [f"1{person.kind}", *_hair_tags(person, visible), *_face_tags(person, visible)]
    if _has_color(person):
        tags.append(person.skin)
    tags += [*outfit_words(person, visible), *_detail_tags(person, visible)]
    tags += [*_accessory_words(person), *_shoe_tags(person, visible)]
    if visible.pose:
        tags.append(person.pose)
    if visible.held:
        tags.append(f"holding {_colored(person, person.held_color, person.held)}")
    return [*tags, person.rendering, person.framing]


def short_person_tags(person: Person, visible: Visible) -> list[str]:
    """Return the tags of a small person in a picture with other things: CLIP reads 75 tokens."""
    hair = [tag for tag in _hair_tags(person, visible) if not tag.endswith("bangs")]
    expression = _expression(person)
    tags = [f"1{person.kind}", *hair, *([expression] if expression else [])]
    tags += [*outfit_words(person, visible), *_accessory_words(person)]
    if visible.held:
        tags.append(f"holding {_colored(person, person.held_color, person.held)}")
    return tags


def person_sentence(person: Person, visible: Visible) -> str:
    """Return a phrase: 'a smiling girl with long black hair wearing a red dress, waving'."""
    expression = _expression(person)
    parts = [person_phrase(person, visible, _accessory_words(person))]
    if expression in ("neutral expression", "closed eyes"):
        parts.append(f"with {with_article(expression) if 'neutral' in expression else expression}")
    if visible.pose:
        parts.append(POSE_PHRASES[person.pose])
    if visible.held:
        parts.append(f"holding {with_article(_colored(person, person.held_color, person.held))}")
    return ", ".join(parts)


def person_phrase(person: Person, visible: Visible, accessories: Sequence[str] = ()) -> str:
    """Return 'a sad girl with a blonde ponytail wearing a red dress'."""
    expression = _expression(person)
    adjectives = [] if expression in ("", "neutral expression", "closed eyes") else [expression]
    if person.hair_style == "bald":
        adjectives.append("bald")
    subject = with_article(" ".join([*adjectives, person.kind]))
    worn = [*outfit_words(person, visible), *accessories]
    words = f"wearing {join_words([_worn_phrase(item) for item in worn])}"
    hair = _hair_phrase(person)
    return f"{subject} with {hair} {words}" if hair else f"{subject} {words}"


def outfit_words(person: Person, visible: Visible) -> list[str]:
    """Return the garments that can be seen, with colors: ['blue shirt', 'white skirt']."""
    outfit, color, second = person.outfit, person.outfit_color, person.second_color
    upper, _, lower = outfit.partition(" and ")
    if lower:
        words = [_colored(person, color, upper)]
        if visible.legs:
            words.append(lower if lower == "jeans" else _colored(person, second, lower))
        return words
    if visible.depth < TELLING_DEPTH.get(outfit, 0.0) or (outfit == "dress" and not visible.waist):
        return [_colored(person, "white" if outfit == "lab coat" else color, "top")]
    return [outfit if outfit in UNCOLORED else _colored(person, color, outfit)]


def _hair_tags(person: Person, visible: Visible) -> list[str]:
    if person.hair_style == "bald":
        return ["bald"]
    tags = [f"{person.hair_color} hair"] if _has_color(person) else []
    tags.append(person.hair_style)
    if visible.fringe and person.fringe in FRINGE_TAGS:
        tags.append(FRINGE_TAGS[person.fringe])
    return tags


def _hair_phrase(person: Person) -> str:
    if person.hair_style == "bald":
        return ""
    color = person.hair_color if _has_color(person) else ""
    return " ".join(HAIR_PHRASES[person.hair_style].format(color).split())


def _face_tags(person: Person, visible: Visible) -> list[str]:
    tags = []
    if visible.eye_color:
        tags.append(f"{person.eye_color} eyes")
    elif person.eye_shape == "dot" and _shows_open_eyes(person):
        tags.append("dot eyes")
    if expression := _expression(person):
        tags.append(expression)
    if person.blush and _has_color(person):
        tags.append("blush")
    return tags


def _shows_open_eyes(person: Person) -> bool:
    closed = person.expression in ("laughing", "closed eyes")
    return not closed and person.eyewear != "sunglasses"


def _expression(person: Person) -> str:
    if person.expression == "neutral":
        return "neutral expression"
    return person.expression


def _detail_tags(person: Person, visible: Visible) -> list[str]:
    """Return the tag for what has an outfit's second color, if it can be told from the first."""
    if person.outfit not in DETAILS or not _has_color(person):
        return []
    name, depth = DETAILS[person.outfit]
    covered = name == "tie" and person.neckwear in ("bow tie", "scarf")
    seen = visible.waist if name == "sash" else visible.depth >= depth
    if covered or not seen or person.second_color == person.outfit_color:
        return []
    return [f"{person.second_color} {name}"]


def _accessory_words(person: Person) -> list[str]:
    words = []
    if person.headwear == "crown":
        words.append(_colored(person, "gold", "crown"))
    elif person.headwear:
        words.append(_colored(person, person.headwear_color, person.headwear))
    if person.eyewear:
        words.append(person.eyewear)
    if person.neckwear == "necklace":
        words.append(_colored(person, "gold", "necklace"))
    elif person.neckwear:
        words.append(_colored(person, person.held_color, person.neckwear))
    return words


def _shoe_tags(person: Person, visible: Visible) -> list[str]:
    if not visible.shoes or not _has_color(person):
        return []
    return [f"{plan_body(person).shoe_color} shoes"]


def _worn_phrase(words: str) -> str:
    return words if words.endswith(("jeans", "shorts")) else with_article(words)


def _colored(person: Person, color: str, noun: str) -> str:
    return f"{color} {noun}" if _has_color(person) else noun


def _has_color(person: Person) -> bool:
    return person.rendering != "line art"
