"""Images that the base model is never trained on, as subjects for LoRAs.

Three kinds are held out, and packed as `holdout` rows:

* whole styles: the style is new, the things shown are known;
* features: a part of a person (curly hair, cook's clothing) in every person, skin tone and style;
* concepts: one thing in every style.

Six more subjects are not in the pack (`WITHHELD`): guitars, robots, lobsters,
merpeople, firefighters and red hair. Neither the base model nor a LoRA recipe
tuned on the hold-outs has seen them.

Subjects are identified by codepoint where an icon has one, not by words: "cooking" is a frying pan,
"cook" a keyword of garlic and of fire, "curly loop" a sign, and the Cook Islands have a flag. Only
icons that are no Unicode emoji are identified by their names. Subjects go before styles, so
that a cactus in a held-out style belongs only to the concept `cactus`.
"""

from catalogue import Icon

WITHHELD = "withheld"

CONCEPTS = {
    "1F419": "octopus",
    "1F335": "cactus",
    "1F996": "t-rex",
    "1F3B8": WITHHELD,  # guitar
    "1F916": WITHHELD,  # robot
    "1F99E": WITHHELD,  # lobster
    "1F9DC": WITHHELD,  # merperson; what follows makes it a mermaid or merman
}
"""First codepoint of a sequence -> name of the hold-out."""

FEATURES = {
    "1F9B1": "curly-hair",
    "1F373": "cook",
    "1F692": WITHHELD,  # a person and a fire engine: a firefighter
    "1F9B0": WITHHELD,  # red hair
}
"""What a person is joined with -> name of the hold-out."""

WORDS = {
    "octopus": "octopus",
    "cactus": "cactus",
    **dict.fromkeys(("guitar", "robot", "lobster", "mermaid", "merman"), WITHHELD),
    **dict.fromkeys(("firefighter", "firefighters"), WITHHELD),
}
"""Word in the name of an icon without a codepoint -> name of the hold-out."""

STYLES = frozenset({"fluent-mono", "freehand", "streamline"})

_JOINER = "-200D-"


def holdout_of(style_id: str, codepoint: str | None, name: str) -> str:
    """Return the hold-out of an image, or '' if the base model trains on it."""
    subject = _subject_by_words(name) if codepoint is None else _subject_by_codepoint(codepoint)
    return subject or (style_id if style_id in STYLES else "")


def holdout_of_icon(icon: Icon) -> str:
    """Return the hold-out of an icon, or ''."""
    codepoint = icon.emoji.codepoint if icon.emoji else None
    return holdout_of(icon.style.id, codepoint, icon.plain_name)


def stricter(first: str, second: str) -> str:
    """Return the hold-out of an image that two icons share: the stricter of theirs."""
    return max(first, second, key=_strictness)


def _strictness(holdout: str) -> int:
    if not holdout:
        return 0
    if holdout in STYLES:
        return 1
    return 3 if holdout == WITHHELD else 2


def _subject_by_codepoint(codepoint: str) -> str:
    person, *joined = codepoint.split(_JOINER)
    features = (FEATURES[part] for part in joined if part in FEATURES)
    return CONCEPTS.get(person.split("-")[0]) or next(features, "")


def _subject_by_words(name: str) -> str:
    return next((WORDS[word] for word in name.lower().split() if word in WORDS), "")
