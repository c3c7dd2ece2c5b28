"""What a drawn person looks like: every attribute that captions can say, and how it is chosen."""

import random
from dataclasses import dataclass, replace

from canvas import Color
from palette import EYES, HAIR, NAMED, SKIN

HAIR_STYLES = (
    "short hair",
    "bob cut",
    "long hair",
    "twin tails",
    "ponytail",
    "hair bun",
    "double bun",
    "spiky hair",
    "braids",
    "bald",
)
OUTFITS = (
    "dress",
    "t-shirt and jeans",
    "t-shirt and shorts",
    "shirt and skirt",
    "hoodie",
    "coat",
    "raincoat",
    "suit",
    "overalls",
    "sweater",
    "school uniform",
    "kimono",
    "armor",
    "lab coat",
    "pajamas",
)
EXPRESSIONS = (
    "smiling",
    "laughing",
    "sad",
    "surprised",
    "angry",
    "winking",
    "neutral",
    "closed eyes",
)
POSES = (
    "standing",
    "waving",
    "arms up",
    "hands on hips",
    "arms behind back",
    "walking",
    "pointing",
)
FRAMINGS = ("full body", "upper body", "portrait")
HEADWEAR = ("cap", "beanie", "sun hat", "wizard hat", "crown", "headphones", "hair bow")
COVERING_HATS = frozenset({"cap", "beanie", "sun hat", "wizard hat"})
"""Headwear that hides the fringe, and a bun or spikes on top of the head."""
EYEWEAR = ("glasses", "sunglasses")
NECKWEAR = ("scarf", "necklace", "bow tie")
HELD = ("balloon", "book", "flower", "umbrella", "ball", "lollipop", "star")
FRINGES = ("straight", "parted", "side", "pointed", "none")
EYE_SHAPES = ("round", "oval", "dot")
SHOES: dict[str, Color] = {
    "black": (45, 42, 46),
    "brown": (110, 65, 40),
    "white": (235, 235, 235),
    "red": (190, 45, 50),
    "blue": (60, 80, 150),
}
RENDERINGS = ("flat color", "outlined", "line art", "shaded")

UNCOLORED = frozenset({"armor", "lab coat"})
"""Outfits whose color is part of what they are."""

HOLDOUTS: dict[str, dict[str, str]] = {
    "teal-twin-tails": {"hair_style": "twin tails", "hair_color": "teal", "eye_color": "purple"},
    "pink-bun-armor": {"hair_style": "hair bun", "hair_color": "pink", "outfit": "armor"},
    "green-braids": {"hair_style": "braids", "hair_color": "green", "eye_color": "amber"},
    "white-ponytail-kimono": {
        "hair_style": "ponytail",
        "hair_color": "white",
        "outfit": "kimono",
    },
    "blue-spiky-suit": {"hair_style": "spiky hair", "hair_color": "blue", "outfit": "suit"},
}
"""Combinations that no training row shows: characters for LoRAs."""
NEVER_DRAWN = "teal-twin-tails"
"""The hold-out of a character that others drew: not even a hold-out row shows it."""


@dataclass(frozen=True)
class Person:
    """All attributes of a drawn person. Proportions are shares of the body's height."""

    kind: str
    """'girl' or 'boy'."""
    skin: str
    hair_style: str
    hair_color: str
    fringe: str
    eye_color: str
    outfit: str
    outfit_color: str
    second_color: str
    expression: str
    pose: str
    framing: str
    headwear: str
    headwear_color: str
    eyewear: str
    neckwear: str
    held: str
    held_color: str
    blush: bool
    rendering: str
    head_height: float
    head_width: float
    jaw: float
    """0 a round chin, 1 a narrow one."""
    shoulder: float
    eye_size: float
    eye_shape: str
    seed: int
    """For variations of colors and small shapes."""

    @property
    def vanishes_on_white(self) -> bool:
        """Whether white hair or clothes have no outline."""
        outfit = "" if self.outfit in UNCOLORED else self.outfit_color
        is_white = self.outfit == "lab coat" or "white" in (self.hair_color, outfit)
        return is_white and self.rendering in ("flat color", "shaded")

    @property
    def shows_eye_color(self) -> bool:
        """Whether a color can be seen in the eyes."""
        return (
            self.expression not in ("laughing", "closed eyes")
            and self.eyewear != "sunglasses"
            and self.eye_shape != "dot"
            and self.rendering != "line art"
        )


def sample_person(rng: random.Random) -> Person:
    """Return a random person that is no hold-out."""
    while True:
        person = drop_hidden(_sample(rng))
        if find_holdout(person) == "":
            return person


def sample_holdout(name: str, rng: random.Random) -> Person:
    """Return a random person of a hold-out, with everything that makes it visible."""
    while True:
        attributes = {"kind": "girl", "rendering": "flat color", "eye_shape": "oval"}
        person = drop_hidden(replace(_sample(rng), **attributes, **HOLDOUTS[name]))
        if person.shows_eye_color:
            return person


def find_holdout(person: Person) -> str:
    """Return the name of the hold-out that a person belongs to, or ''."""
    for name, attributes in HOLDOUTS.items():
        if all(_may_be(person, key, value) for key, value in attributes.items()):
            return name
    return ""


def _may_be(person: Person, attribute: str, value: str) -> bool:
    if attribute == "eye_color" and not person.shows_eye_color and person.rendering != "line art":
        return True  # Behind closed eyes is any color.
    return bool(getattr(person, attribute) == value)


def drop_hidden(person: Person) -> Person:
    """Return a person without accessories that would hide, or be hidden by, something else."""
    headwear, eyewear, pose = person.headwear, person.eyewear, person.pose
    on_top = person.hair_style in ("hair bun", "double bun", "spiky hair")
    if headwear in COVERING_HATS and on_top:
        headwear = ""
    if headwear == "hair bow" and person.hair_style == "bald":
        headwear = ""
    if headwear in ("crown", "hair bow") and person.hair_style == "hair bun":
        headwear = ""
    if eyewear == "sunglasses" and person.expression in ("winking", "closed eyes"):
        eyewear = ""
    if person.held == "umbrella":
        pose = "waving"  # An umbrella at the hip would be behind the head.
    return replace(person, headwear=headwear, eyewear=eyewear, pose=pose)


def _sample(rng: random.Random) -> Person:
    kind = rng.choice(("girl", "girl", "boy"))
    hair_style = rng.choices(HAIR_STYLES, [_hair_weight(style, kind) for style in HAIR_STYLES])[0]
    outfits = [
        outfit for outfit in OUTFITS if kind == "girl" or outfit not in ("dress", "shirt and skirt")
    ]
    outfit = rng.choice(outfits)
    pose = rng.choice(POSES)
    framing = rng.choices(FRAMINGS, (5, 3, 2))[0]
    colors = list(NAMED)
    return Person(
        kind=kind,
        skin=rng.choice(list(SKIN)),
        hair_style=hair_style,
        hair_color=rng.choice(list(HAIR)),
        fringe=rng.choice(FRINGES),
        eye_color=rng.choice(list(EYES)),
        outfit=outfit,
        outfit_color=rng.choice(colors),
        second_color=rng.choice(colors),
        expression=rng.choice(EXPRESSIONS),
        pose=pose,
        framing=framing,
        headwear=rng.choice(HEADWEAR) if rng.random() < 0.25 else "",
        headwear_color=rng.choice(colors),
        eyewear=rng.choice(EYEWEAR) if rng.random() < 0.12 else "",
        neckwear=rng.choice(NECKWEAR) if rng.random() < 0.15 else "",
        held=rng.choice(HELD) if rng.random() < 0.2 and pose in ("waving", "standing") else "",
        held_color=rng.choice(colors[:11]),
        blush=rng.random() < 0.35,
        rendering=rng.choices(RENDERINGS, (5, 3, 1, 2))[0],
        head_height=rng.uniform(0.26, 0.48),
        head_width=rng.uniform(0.88, 1.18),
        jaw=rng.uniform(0.0, 1.0),
        shoulder=rng.uniform(0.85, 1.2),
        eye_size=rng.uniform(0.75, 1.25),
        eye_shape=rng.choice(EYE_SHAPES),
        seed=rng.randrange(2**32),
    )


def _hair_weight(style: str, kind: str) -> float:
    """Return how often a hair style is chosen, relative to others."""
    if style == "bald":
        return 0.0 if kind == "girl" else 0.15
    boyish = style in ("short hair", "spiky hair")
    return 1.0 if boyish == (kind == "boy") else 0.25
