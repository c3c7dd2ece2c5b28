"""What rows are made from: the emoji pack and a folder of photographs."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from grammar import strip_article
from pack import ATTRIBUTION, read_pack
from photographs import Photograph, read_photographs
from things import GROUPS, Emoji

from lorasmith.data.reading.filters import hash_fraction

VALIDATION_SHARE = 0.03
"""Emoji rows below this hash are validation rows in every training: no composition shows them."""


@dataclass(frozen=True)
class Inputs:
    """Emoji that may be trained on, and photographs."""

    emoji: list[Emoji]
    photographs: list[Photograph]


def read_inputs(emoji: Path, photographs: Path) -> Inputs:
    """Read the training rows of the emoji pack, and the photographs."""
    return Inputs(read_emoji(emoji), read_photographs(photographs))


def read_emoji(pack: Path) -> list[Emoji]:
    """Read the rows of a pack that compositions may show: no hold-outs, no validation rows."""
    rows, images = read_pack(pack)
    return [
        Emoji(data, row["caption"], row["style_phrase"], row["group"], row["licence"])
        for row, data in zip(rows, images, strict=True)
        if row["role"] == "base"
        and row["group"] in GROUPS
        and not strip_article(row["caption"]).startswith("flag of")
        and hash_fraction(f"{row['style']}/{row['icon']}") >= VALIDATION_SHARE
    ]


def read_credits(emoji: Path, photographs: Path) -> str:
    """Return the attributions of the emoji pack and of the photographs.

    Raises:
        FileNotFoundError: the photographs have no ATTRIBUTION.txt.
    """
    file = photographs / ATTRIBUTION
    if not file.is_file():
        raise FileNotFoundError(f"{file}: write who took the photographs, and their licences")
    with tarfile.open(emoji) as archive:
        member = archive.extractfile(ATTRIBUTION)
        if member is None:
            raise FileNotFoundError(f"{emoji} has no {ATTRIBUTION}")
        return f"{member.read().decode()}\n{file.read_text(encoding='utf-8')}"
