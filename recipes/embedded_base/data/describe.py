"""From rendered icons to rows: drop empty images, merge identical ones, write captions.

Withheld images are dropped here, after rendering: the frame of a style is measured on all of its
icons.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from captions import Caption, write_caption
from catalogue import Icon
from colours import main_colours
from holdout import WITHHELD, holdout_of_icon, stricter
from pack import Row
from render import Picture, is_faint


@dataclass
class Described:
    """The rows of one style with their images, and the icons that were left out."""

    rows: list[Row] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)


def describe_style(drawn: Iterable[tuple[Icon, Picture | None]]) -> Described:
    """Describe all rendered icons of one style, in order."""
    result = Described()
    described: list[tuple[Row, Picture]] = []
    rows_by_pixels: dict[bytes, Row] = {}
    for icon, picture in drawn:
        if picture is None or is_faint(picture):
            result.empty.append(icon.name)
            continue
        duplicate = rows_by_pixels.get(picture.tobytes())
        if duplicate is not None:
            merge_twin(duplicate, icon)
            result.duplicates.append(icon.name)
            continue
        colours = main_colours(picture)
        row = make_row(icon, write_caption(icon, colours), colours)
        rows_by_pixels[picture.tobytes()] = row
        described.append((row, picture))
    for row, picture in described:
        if row["holdout"] == WITHHELD:
            result.withheld.append(row["icon"])
        else:
            result.rows.append(row)
            result.pictures.append(picture)
    return result


def merge_twin(row: Row, icon: Icon) -> None:
    """Note in a row that another icon looks the same; holding one out holds out the image."""
    row["also"].append(icon.emoji.name if icon.emoji else icon.plain_name)
    set_holdout(row, stricter(row["holdout"], holdout_of_icon(icon)))


def set_holdout(row: Row, holdout: str) -> None:
    """Set the hold-out of a row, and with it the row's role."""
    row["holdout"] = holdout
    row["role"] = "holdout" if holdout else "base"


def make_row(icon: Icon, caption: Caption, colours: list[str]) -> Row:
    """Return the row of one image; its position in the pack is set later."""
    style, emoji = icon.style, icon.emoji
    row = Row(
        id=-1,
        style=style.id,
        role="",
        codepoint=emoji.codepoint if emoji else None,
        name=caption.name,
        caption=caption.main,
        captions=list(caption.phrasings),
        keywords=list(caption.keywords),
        colours=colours,
        group=emoji.group if emoji else "",
        subgroup=emoji.subgroup if emoji else "",
        tone=emoji.tone if emoji else 0,
        style_phrase=style.phrase,
        style_desc=style.description,
        licence=style.licence,
        licensor=style.licensor,
        package=style.package,
        icon=icon.name,
        also=[],
        off=-1,
        len=-1,
        holdout="",
    )
    set_holdout(row, holdout_of_icon(icon))
    return row
