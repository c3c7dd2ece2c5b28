"""Small stand-ins for what the recipe reads from the npm packages."""

import json
from pathlib import Path

from catalogue import Icon, Vector
from sources import Style
from unicode_table import Emoji

SQUARE = '<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill}"/>'


def style(style_id: str = "noto", **changes: object) -> Style:
    facts = {
        "id": style_id,
        "package": "@example/icons",
        "phrase": f"{style_id} style",
        "description": "flat emoji",
        "licence": "MIT",
        "licensor": "Example",
        **changes,
    }
    return Style(**facts)


def emoji(name: str, codepoint: str = "1F300", **changes: object) -> Emoji:
    facts = {
        "codepoint": codepoint,
        "name": name,
        "keywords": (),
        "group": "objects",
        "subgroup": "tool",
        "aliases": (),
        "base": codepoint,
        **changes,
    }
    return Emoji(**facts)


def square(x: float = 8, y: float = 8, side: float = 16, fill: str = "#cc0000") -> Vector:
    body = SQUARE.format(x=x, y=y, side=side, fill=fill)
    return Vector(left=0, top=0, width=32, height=32, body=body)


def icon(name: str, shows: Emoji | None = None, drawn_as: Style | None = None) -> Icon:
    return Icon(drawn_as or style(), name, square(), shows)


def write_unicode_packages(root: Path) -> tuple[Path, Path]:
    """Write the two packages with the names of emoji, knowing one emoji only."""
    emojibase, emojilib = root / "emojibase", root / "emojilib"
    skins = [{"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone", "tone": 1}]
    entry = {"hexcode": "1F44B", "label": "waving hand", "tags": ["Wave"], "group": 1}
    messages = {"groups": [{"order": 1, "message": "people & body"}], "subgroups": []}
    contents = {
        emojibase / "en/data.json": [{**entry, "subgroup": 9, "skins": skins}],
        emojibase / "en/messages.json": messages,
        emojibase / "meta/unicode-names.json": {"1F44B": "WAVING HAND SIGN"},
        emojilib / "dist/emoji-en-US.json": {"👋": ["wave", "hello_there"]},
    }
    for name in ("cldr", "emojibase", "iamcal", "joypixels", "github", "emojibase-legacy"):
        contents[emojibase / f"en/shortcodes/{name}.json"] = {"1F44B": f"wave_{name}"}
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return emojibase, emojilib
