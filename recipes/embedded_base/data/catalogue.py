"""Select the images of the dataset: the icons of every style, matched to Unicode emoji."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sources import Sources, Style
from unicode_table import MIXED_TONES, Emoji, EmojiTable, normalise_codepoint

# Trademarks: a free licence for the drawing does not cover the sign that is drawn.
_BRANDS = re.compile(
    r"-logo\b(?!ut)|^android-|arduino|amex|mastercard|-visa|bitcoin|pokemon|mario-|nintendo"
    r"|pacman|tetris|shibuya-109"
)
_PLACEHOLDER = re.compile(r"^unknown-flag")
_VARIANT_NUMBER = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Vector:
    """An SVG fragment and the rectangle of it that shows."""

    left: float
    top: float
    width: float
    height: float
    body: str


@dataclass(frozen=True)
class Bitmap:
    """A square image file."""

    path: Path


Artwork = Vector | Bitmap


@dataclass(frozen=True)
class Icon:
    """One icon of one style, before rendering."""

    style: Style
    name: str
    artwork: Artwork
    emoji: Emoji | None
    """The Unicode emoji it shows, where it shows one."""

    @property
    def plain_name(self) -> str:
        """The icon's name in words, for icons that are no emoji."""
        slug = self.name
        if self.style.numbered_variants:
            slug = _VARIANT_NUMBER.sub("", slug)
        return slug.replace("-", " ").replace("flag for ", "flag of ")


def stable_hash(text: str) -> int:
    """Return a 32-bit number that depends on the text only, the same in every process."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8], 16)


def collect_icons(
    sources: Sources, folders: Mapping[str, Path], table: EmojiTable
) -> dict[str, list[Icon]]:
    """Return the icons to draw, by style, in the order in which they are packed."""
    codepoints = {
        style.id: _codepoints_by_name(folders[style.package], table)
        for style in sources.styles
        if any(style.id in (s.codepoints_of, s.only_emoji_of) for s in sources.styles)
    }
    return {
        style.id: _choose(list(_read_icons(style, folders[style.package], table, codepoints)))
        for style in sources.styles
    }


def match_emoji(style: Style, name: str, codepoint: str | None, table: EmojiTable) -> Emoji | None:
    """Return the emoji an icon shows: by the codepoint its package gives, else by its name."""
    known = table.get(codepoint)
    if known is not None:
        return known
    # "flag-for-trinidad-and-tobago" is "flag: Trinidad & Tobago"; "flag-for-black-flag" is no flag
    # of a place but the emoji "black flag".
    flag = re.sub(r"^flag-for-(flag-)?", "flag-", name).replace("-and-", "-")
    spellings = [name, flag, name.removeprefix("flag-for-")]
    if style.numbered_variants:
        spellings.append(_VARIANT_NUMBER.sub("", name))
    matches = (table.search(spelling) for spelling in spellings)
    return table.get(next((match for match in matches if match), None))


def _codepoints_by_name(folder: Path, table: EmojiTable) -> dict[str, str]:
    """Return the codepoint of every icon of a package that has one."""
    result = {}
    for name, stated, _ in _entries(folder):
        codepoint = stated if stated in table else table.search(name)
        if codepoint is not None:
            result[name] = codepoint
    return result


def _entries(folder: Path) -> Iterator[tuple[str, str | None, Artwork]]:
    """Yield the name, stated codepoint and artwork of every visible icon of a package."""
    bitmaps = sorted(folder.glob("assets/*.webp"))
    if bitmaps:
        for path in bitmaps:
            yield path.stem, normalise_codepoint(path.stem), Bitmap(path)
        return
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    stated: dict[str, str] = {}
    if (folder / "chars.json").exists():
        characters = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        for code, name in characters.items():
            stated.setdefault(name, normalise_codepoint(code))
    # 16 is the default size of the icon format.
    default_width, default_height = icons.get("width", 16), icons.get("height", 16)
    for name, icon in icons["icons"].items():
        if icon.get("hidden"):
            continue  # removed from the set by its authors
        yield (
            name,
            stated.get(name),
            Vector(
                left=icon.get("left", 0),
                top=icon.get("top", 0),
                width=icon.get("width", default_width),
                height=icon.get("height", default_height),
                body=icon["body"],
            ),
        )


def _read_icons(
    style: Style, folder: Path, table: EmojiTable, codepoints: Mapping[str, Mapping[str, str]]
) -> Iterator[Icon]:
    """Yield the usable icons of one style; each emoji once, except where variants are wanted."""
    borrowed = codepoints.get(style.codepoints_of, {})
    allowed = set(codepoints.get(style.only_emoji_of, {}).values()) | set(style.also_emoji)
    names_seen: set[str] = set()
    for name, stated, artwork in _entries(folder):
        if _PLACEHOLDER.search(name) or _BRANDS.search(name):
            continue
        emoji = None
        if style.unicode:
            emoji = match_emoji(style, name, borrowed.get(name, stated), table)
        if style.only_emoji_of and (emoji is None or emoji.base not in allowed):
            continue
        if emoji is None:
            if "skin-tone" not in name:
                yield Icon(style, name, artwork, None)
            continue
        if emoji.tone == MIXED_TONES:
            continue  # dozens of combinations for each couple, alike at this size
        if emoji.codepoint in names_seen and not style.numbered_variants:
            continue
        names_seen.add(emoji.codepoint)
        yield Icon(style, name, artwork, emoji)


def _choose(icons: list[Icon]) -> list[Icon]:
    """Keep every icon without a skin tone and, of those with one, a single tone per emoji.

    All five would make a third of the data images of persons who differ in nothing else. Which
    tone is kept varies from emoji to emoji, but not from run to run.
    """
    plain: list[Icon] = []
    toned: dict[str, dict[int, Icon]] = {}
    for icon in icons:
        if icon.emoji is not None and icon.emoji.tone:
            toned.setdefault(icon.emoji.base, {})[icon.emoji.tone] = icon
        else:
            plain.append(icon)
    for base, by_tone in toned.items():
        tones = sorted(by_tone)
        style_id = by_tone[tones[0]].style.id
        plain.append(by_tone[tones[stable_hash(style_id + base) % len(tones)]])
    return plain
