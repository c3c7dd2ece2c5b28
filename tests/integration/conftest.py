"""Pictures to train on."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six small captioned pictures, all with the tag."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((4 * number, 8, 30 + 4 * number, 50), fill="black")
        picture.save(folder / f"ball{number}.png")
        (folder / f"ball{number}.txt").write_text(f"ball number {number}, inkmono style\n")
    return folder
