import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorasmith import __version__
from lorasmith.core.errors import OutputError
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.outputs.grid import MAX_GRID_SIDE, make_grid, make_labelled_grid
from lorasmith.inference.outputs.png_metadata import build_parameters_text, compute_model_hash
from lorasmith.inference.outputs.save import save_images

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def parse(text: str) -> dict[str, str]:
    """Read parameters the way A1111 does (its last line is a list of pairs)."""
    *lines, last = text.strip().split("\n")
    prompt, negative, in_negative = [], [], False
    for line in lines:
        if line.startswith("Negative prompt:"):
            in_negative, line = True, line.removeprefix("Negative prompt:").strip()
        (negative if in_negative else prompt).append(line)
    pairs = {
        key: json.loads(value) if value[:1] == '"' else value for key, value in PAIR.findall(last)
    }
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative), **pairs}


def test_parameters_are_written_as_in_a1111() -> None:
    options = SamplingOptions(
        "blurry, low: bad", 30, 7.5, sampler="dpmpp_2m", clip_skip=2, guidance_rescale=0.7
    )
    text = build_parameters_text(
        "a red apple\n<lora:x:0.5>", 12, options, (128, 64), Path("a, b"), "0123456789"
    )
    assert parse(text) == {
        "Prompt": "a red apple\n<lora:x:0.5>",
        "Negative prompt": "blurry, low: bad",
        "Steps": "30",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7.5",
        "Seed": "12",
        "Size": "128x64",
        "Model hash": "0123456789",
        "Model": "a, b",
        "Clip skip": "2",
        "CFG rescale": "0.7",
        "RNG": "CPU",
        "Version": f"lorasmith {__version__}",
    }


def test_default_options_are_left_out_of_the_parameters() -> None:
    text = build_parameters_text("apple", 0, SamplingOptions(), (8, 8), Path("m"), "")
    assert text == (
        "apple\nSteps: 20, Sampler: DDIM, CFG scale: 5, Seed: 0, Size: 8x8, Model: m, "
        f"RNG: CPU, Version: lorasmith {__version__}"
    )


def test_model_hash_is_of_the_loaded_weights(tmp_path: Path) -> None:
    assert compute_model_hash(tmp_path) == ""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"abc")
    (tmp_path / "unet" / "w.fp16.safetensors").write_bytes(b"other")
    assert (
        compute_model_hash(tmp_path) == "ba7816bf8f"
    )  # SHA-256 of "abc" (FIPS 180-2, appendix B.1)


def colour(shade: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (shade, 0, 0))


def test_images_are_numbered_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "0000.png").write_bytes(b"old")
    (tmp_path / "0007.png").write_bytes(b"mine")
    images = [colour(shade) for shade in (10, 20, 30)]
    images[1].info["parameters"] = "сова\nSteps: 1"
    save_images(images, tmp_path)
    names = ["0000.png", "0001.png", "0002.png", "0007.png", "grid.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "0007.png").read_bytes() == b"mine"
    with Image.open(tmp_path / "0001.png") as image:
        assert image.getpixel((0, 0)) == (20, 0, 0)
        assert image.info["parameters"] == "сова\nSteps: 1"
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (16, 16)


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "0000.png").mkdir()
    with pytest.raises(OutputError, match=r"0000\.png"):
        save_images([colour(1)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0000.png"]  # no temporary file left


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [(1, None, (8, 8)), (3, None, (16, 16)), (5, None, (24, 16)), (4, 4, (32, 8))],
)
def test_grid_is_nearly_square(count: int, columns: int | None, size: tuple[int, int]) -> None:
    grid = make_grid([colour(10 * (k + 1)) for k in range(count)], columns)
    assert grid.size == size
    assert grid.getpixel((size[0] - 1 if count == columns else 0, 0))[0] == (40 if columns else 10)


def test_large_grids_are_scaled_down() -> None:
    grid = make_grid([colour(9, (3000, 1500))] * 16)
    assert max(grid.size) <= MAX_GRID_SIDE


def test_smaller_images_are_centred() -> None:
    grid = make_grid([colour(200, (16, 16)), colour(100, (8, 8))])
    assert grid.size == (32, 16)
    assert grid.getpixel((24, 8))[0] == 100
    assert grid.getpixel((17, 1)) == (0, 0, 0)


def test_labelled_grid_shows_every_image_and_label() -> None:
    rows = [[colour(200, (64, 64)), None], [colour(200, (64, 64)), colour(100, (64, 64))]]
    unlabelled = make_labelled_grid(rows)
    sheet = make_labelled_grid(
        rows, ["seed 0", "seed 1"], ["base", "a long caption that wraps"], "Title"
    )
    assert sheet.width > unlabelled.width
    assert sheet.height > unlabelled.height
    for image in (np.asarray(unlabelled), np.asarray(sheet)):
        assert (image == (200, 0, 0)).all(-1).sum() == 2 * 64 * 64
        assert (image == (100, 0, 0)).all(-1).sum() == 64 * 64
    above = np.asarray(sheet)[: sheet.height - unlabelled.height]
    assert (above < 128).any(), "the captions are drawn"
    wide = make_labelled_grid([[colour(1)]], title="a title much wider than its only picture")
    assert (np.asarray(wide)[:, -6:] == 255).all(), "the title fits with its margin"
