"""Small inputs of the recipe's wider world: colored shapes instead of emoji and photographs."""

from pathlib import Path

import numpy as np
from pack import Row, encode_picture, write_pack
from PIL import Image, ImageDraw
from things import Emoji

COLORS = {"red": (215, 40, 45), "blue": (50, 120, 220), "green": (70, 160, 60)}


def draw_disk(color: str, side: int = 128) -> np.ndarray:
    """Return a colored disk on white, uint8 ``[side, side, 3]``."""
    image = Image.new("RGB", (side * 4, side * 4), (255, 255, 255))
    edge = side * 0.8
    ImageDraw.Draw(image).ellipse((edge, edge, 4 * side - edge, 4 * side - edge), COLORS[color])
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def make_emoji(color: str, caption: str = "", group: str = "objects") -> Emoji:
    """Return an emoji that is a colored disk."""
    caption = caption or f"a {color} ball, noto style"
    return Emoji(encode_picture(draw_disk(color)), caption, "noto style", group, "Apache-2.0")


def make_pack_row(icon: str, color: str, role: str = "base", group: str = "objects") -> Row:
    """Return a row of the emoji pack."""
    caption = f"a {color} {icon}, noto style"
    return Row(
        id=0,
        style="noto",
        role=role,
        codepoint=None,
        name=icon,
        caption=caption,
        captions=[caption],
        keywords=[],
        colours=[color],
        group=group,
        subgroup="",
        tone=0,
        style_phrase="noto style",
        style_desc="",
        licence="Apache-2.0",
        licensor="",
        package="",
        icon=icon,
        also=[],
        off=0,
        len=0,
        holdout="" if role == "base" else "cactus",
    )


def write_inputs(folder: Path, rows: list[Row]) -> tuple[Path, Path]:
    """Write a pack of disks and two photographs; return their paths."""
    images = [encode_picture(draw_disk(row["colours"][0])) for row in rows]
    write_pack(folder / "emoji.tar", rows, images, "credits of the emoji\n")
    photographs = folder / "photographs"
    for name, level in (("dog2", 60), ("berry_bowl", 180)):
        (photographs / name).mkdir(parents=True)
        noise = np.random.default_rng(level).integers(level - 40, level + 40, (160, 200, 3))
        Image.fromarray(noise.astype(np.uint8)).save(photographs / name / "0.png")
    (photographs / "ATTRIBUTION.txt").write_text("credits of the photographs\n")
    return folder / "emoji.tar", photographs
