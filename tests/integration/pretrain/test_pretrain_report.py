"""`lorasmith pretrain report` on a tiny model and a handful of rows."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.cli import run
from lorasmith.pretraining import report

STYLES = ("noto", "blob", "emojitwo")
NAMES = ("cat", "dog", "car", "tree", "star", "fish", "hat", "cup", "key", "bell", "sun", "moon")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for x, style in enumerate(STYLES):
        for y, name in enumerate(NAMES):
            file = f"{style}-{name}.png"
            Image.new("RGB", (64, 64), (60 * x, 20 * y, 128)).save(folder / file)
            row = {"file_name": file, "text": f"a {name}, {style} style"}
            lines.append(json.dumps({**row, "style": style, "name": name}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def settings_for(pictures: Path, folder: Path) -> Path:
    """Write the settings of a U-Net run, of which a report reads those about data."""
    config = folder / "unet.toml"
    config.write_text(
        'vae = "unused"\nclip = "unused"\nstages = [{ resolution = 64, steps = 1 }]\n'
        f'[data]\npath = "{pictures}"\nvalidation_share = 0.4\n'
        f'[train]\noutput_dir = "{folder}/run"\nsteps = 1\nbatch_size = 1\nlearning_rate = 1e-3\n'
    )
    return config


@pytest.fixture(params=["conv", "vit"])
def model_with_tower(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    from lorasmith.models.image_encoder import ClipModel, save_clip
    from lorasmith.models.load import load_text_encoder, load_tokenizer
    from lorasmith.models.vision.conv_encoder import ConvImageEncoder
    from lorasmith.models.vision.vision_transformer import VitSizes
    from lorasmith.models.vision.vit_encoder import VitImageEncoder

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    towers = {
        "conv": lambda: ConvImageEncoder([8, 8], [1, 1], 16),
        "vit": lambda: VitImageEncoder(VitSizes(64, 16, 16, 1, 2, 16), 16),
    }
    pair = ClipModel(load_text_encoder(tiny_model), towers[request.param]())
    save_clip(pair, load_tokenizer(tiny_model), folder)
    return folder


def test_report_has_metrics_and_sheets(
    pictures: Path, model_with_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "NUM_TRAINING_CAPTIONS": 6,
        "NUM_UNSEEN_CAPTIONS": 3,
        "NUM_SHEET_IMAGES": 4,
        "NUM_INFERENCE_STEPS": 2,
    }.items():
        monkeypatch.setattr(report, name, value)
    config = settings_for(pictures, tmp_path)
    notes = tmp_path / "eye.md"
    notes.write_text("## By eye\n\nAll noise.\n")
    short = tmp_path / "short"
    shutil.copytree(model_with_tower / "vae", short / "vae")
    (short / "log.jsonl").write_text('{"step": 7}\n')
    out = tmp_path / "report" / "RESULTS.md"
    arguments = ["pretrain", "report", str(config), "-m", str(model_with_tower), "--out", str(out)]
    extra = [f"--vae=same={model_with_tower}", f"--unet=plain={model_with_tower / 'unet'}"]
    more = [f"--table=f8c4={short}", "--append", str(notes), "--device", "cpu"]
    assert run([*arguments, *extra, *more]) == 0
    text = out.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    shipped = next(line for line in lines if line.startswith("| shipped |"))
    same_row = next(line for line in lines if line.startswith("| same |"))
    assert shipped.replace("shipped", "same") == same_row
    assert "| f8c4 | f8 | 4 | 7 at 64 px |" in text
    assert sum(line.startswith("| plain |") for line in lines) == 2
    assert text.endswith("All noise.\n")
    assert Image.open(out.with_name("sheet.png")).width > 2 * 64
    assert out.with_name("sheet_unseen.png").is_file()
    assert out.with_name("reconstructions.png").is_file()


@pytest.mark.parametrize("option", ["vae", "unet", "table"])
def test_missing_network_is_an_error_before_anything_is_measured(
    option: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings_for(pictures, tmp_path)
    out = tmp_path / "RESULTS.md"
    arguments = ["pretrain", "report", str(config), "--out", str(out)]
    assert run([*arguments, f"--{option}=other={tmp_path / 'absent'}"]) == 1
    error = capsys.readouterr().err
    assert f"error: --{option}: there is no " in error
    assert "absent" in error
    assert not out.exists()


def test_too_few_rows_are_an_error(
    pictures: Path, model_with_tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings_for(pictures, tmp_path)
    arguments = ["pretrain", "report", str(config), "-m", str(model_with_tower)]
    assert run([*arguments, "--out", str(tmp_path / "R.md"), "--device", "cpu"]) == 1
    assert "needs 256 training rows" in capsys.readouterr().err
