"""The table of Unicode emoji: names, keywords, groups, and a search by icon name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MIXED_TONES = -1
"""Tone of an emoji whose persons have different skin tones."""

_SHORTCODE_SETS = ("cldr", "emojibase", "iamcal", "joypixels", "github", "emojibase-legacy")
_VARIATION_SELECTORS = {"FE0F", "FE0E"}


@dataclass(frozen=True)
class Emoji:
    """Names, keywords and group of one emoji."""

    codepoint: str
    """Hexadecimal codepoints joined by dashes, without variation selectors."""
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    aliases: tuple[str, ...]
    """Other names: chat shortcodes, and the formal Unicode name."""
    base: str
    """Codepoint of the same emoji without a skin tone."""
    tone: int = 0
    """0: none, 1 (light) to 5 (dark), or MIXED_TONES."""


def normalise_codepoint(text: str) -> str:
    """Normalise a codepoint sequence: '1f9d1_200d_1f373' -> '1F9D1-200D-1F373'."""
    parts = text.upper().replace("_", "-").split("-")
    return "-".join(part.zfill(4) for part in parts if part not in _VARIATION_SELECTORS)


class EmojiTable:
    """All emoji by codepoint, and codepoints by name."""

    def __init__(self, emoji: dict[str, Emoji]) -> None:
        self.by_codepoint = emoji
        self._by_key: dict[str, str] = {}
        # A proper name beats an alias of another emoji; among equals the first emoji wins.
        for entry in emoji.values():
            self._by_key.setdefault(_key(entry.name), entry.codepoint)
        for entry in emoji.values():
            for alias in filter(None, entry.aliases):
                self._by_key.setdefault(_key(alias), entry.codepoint)

    def __contains__(self, codepoint: object) -> bool:
        return codepoint in self.by_codepoint

    def get(self, codepoint: str | None) -> Emoji | None:
        """Return the emoji with this codepoint, or None."""
        return None if codepoint is None else self.by_codepoint.get(codepoint)

    def search(self, slug: str) -> str | None:
        """Return the codepoint of the emoji that an icon name most likely means, or None."""
        return next((self._by_key[k] for k in _guesses(slug) if k in self._by_key), None)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _guesses(slug: str) -> Iterator[str]:
    """Yield variants of an icon name to look up in the table."""
    key = _key(slug)
    yield key
    yield key.removesuffix("face")
    yield key + "bloodtype"  # "a-button" is the button of blood type A


def load_emoji_table(emojibase: Path, emojilib: Path) -> EmojiTable:
    """Read the table from the unpacked packages `emojibase-data` and `emojilib`."""
    messages = _read_json(emojibase / "en/messages.json")
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    aliases = _read_aliases(emojibase)
    tags = {
        normalise_codepoint("-".join(f"{ord(char):X}" for char in char_sequence)): words
        for char_sequence, words in _read_json(emojilib / "dist/emoji-en-US.json").items()
    }
    table: dict[str, Emoji] = {}
    for entry in _read_json(emojibase / "en/data.json"):
        codepoint = normalise_codepoint(entry["hexcode"])
        words = [tag.lower() for tag in entry.get("tags", [])]
        words += [tag.replace("_", " ") for tag in tags.get(codepoint, [])]
        emoji = Emoji(
            codepoint=codepoint,
            name=entry["label"],
            keywords=tuple(dict.fromkeys(words)),
            group=groups.get(entry.get("group"), ""),
            subgroup=subgroups.get(entry.get("subgroup"), ""),
            aliases=aliases.get(codepoint, ()),
            base=codepoint,
        )
        table[codepoint] = emoji
        for skin in entry.get("skins", []):
            toned = normalise_codepoint(skin["hexcode"])
            table[toned] = replace(
                emoji,
                codepoint=toned,
                name=skin["label"],
                aliases=aliases.get(toned, ()),
                tone=_single_tone(skin.get("tone", 0)),
            )
    return EmojiTable(table)


def _read_aliases(emojibase: Path) -> dict[str, tuple[str, ...]]:
    """Collect shortcodes and, after them, the formal Unicode name of every emoji."""
    aliases: dict[str, list[str]] = {}
    for name in _SHORTCODE_SETS:
        for code, value in _read_json(emojibase / f"en/shortcodes/{name}.json").items():
            values = [value] if isinstance(value, str) else value
            aliases.setdefault(normalise_codepoint(code), []).extend(values)
    for code, value in _read_json(emojibase / "meta/unicode-names.json").items():
        aliases.setdefault(normalise_codepoint(code), []).append(value)
    return {code: tuple(values) for code, values in aliases.items()}


def _single_tone(tone: int | list[int]) -> int:
    tones = {tone} if isinstance(tone, int) else set(tone)
    return tones.pop() if len(tones) == 1 else MIXED_TONES


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
