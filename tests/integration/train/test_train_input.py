"""What ``train`` is given: settings and data, right and wrong."""

import re
import tomllib
from pathlib import Path

import pytest

from helpers.lora_files import make_lora
from helpers.training.train_commands import last_error, sets, train
from lorasmith.cli import run
from lorasmith.models.load import load_model

# --- settings -------------------------------------------------------------------------------


def test_options_override_the_file_and_set_overrides_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[data]\npath="p"\ntag="ink"\n[output]\nname="n"\n[train]\nsteps=5\nseed=9\n')
    more = ["--steps", "7", "--tag", "true", "--set", "train.steps=8", "--set", "lora.rank=2"]
    assert run(["train", str(file), *more, "--print-config"]) == 0
    tree = tomllib.loads(capsys.readouterr().out)
    assert tree["train"]["steps"] == 8
    assert tree["train"]["seed"] == 9
    assert tree["lora"]["rank"] == 2
    assert tree["data"]["tag"] == "true"


def test_print_config_alone_is_a_file_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--print-config"]) == 0
    (tmp_path / "run.toml").write_text(capsys.readouterr().out)
    assert run(["train", "run.toml", "--print-config"]) == 0
    assert not (tmp_path / "loras").exists()


def test_unknown_keys_are_named_with_section_and_close_matches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[data]\npath="p"\ntag="ink"\n[output]\nname="n"\n[train]\nlearning_rat=1.0\n')
    assert run(["train", str(file)]) == 1
    error = last_error(capsys)
    assert "unknown key 'learning_rat' in section [train]; did you mean learning_rate" in error
    assert str(file) in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train needs --data DIR, --tag TAG, --out NAME"),
        (["--data", "x", "--set", "output.name=n"], "train needs --tag TAG"),
        (["nothing.toml"], "nothing.toml: no such settings file"),
        (["--data", "x", "--tag", "t", "--out", "o"], "x: no such data folder"),
        (["--data", "x", "--tag", "t", "--out", "o", "--steps", "-3"], "train.steps"),
        (["--data", "x", "--tag", "t", "--out", "o", "--set", "train"], "section.key=value"),
        (
            ["--data", "x", "--tag", "t", "--out", "o", "--set", "train.device=toaster"],
            "'toaster' is not a device",
        ),
    ],
)
def test_wrong_commands_are_one_line_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == 1
    assert message in last_error(capsys)
    assert list(tmp_path.iterdir()) == []


# --- data -----------------------------------------------------------------------------------


def test_no_captions_is_an_error_with_counts(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in pictures.glob("*.txt"):
        text.unlink()
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "6 of 6 images have no caption, first ball0.png" in last_error(capsys)
    assert not (tmp_path / "ink").exists()


def test_tag_that_no_caption_has_is_an_error(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--tag", "inkmonos") == 1
    assert "none of its 6 captions contains the tag 'inkmonos'" in last_error(capsys)
    assert not (tmp_path / "ink").exists()


def test_tag_that_some_captions_miss_is_a_warning(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "ball3.txt").write_text("a ball")
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    error = capsys.readouterr().err
    assert re.match(r"warning: .*: 1 of 6 captions do not contain the tag 'inkmono'", error)
    assert (tmp_path / "ink.safetensors").is_file()


def test_damaged_image_is_named(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = pictures / "ball2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "ball2.png: cannot be decoded" in last_error(capsys)


def test_nothing_is_written_into_the_image_folder(
    tiny_model: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(pictures.rglob("*"))
    assert train(tiny_model, pictures, f"{pictures}/runs/ink") == 1
    assert "output.name (--out): " in (error := last_error(capsys))
    assert f"lies among the pictures in {pictures}" in error
    monkeypatch.chdir(pictures)
    assert train(tiny_model, Path(), "ink") == 1
    assert "loras/ink lies among the pictures in ." in last_error(capsys)
    assert sorted(pictures.rglob("*")) == before


def test_nothing_is_written_into_the_class_image_folder(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    more = sets(f"data.reg_data_dir={others}")
    assert train(tiny_model, pictures, f"{others}/ink", *more) == 1
    assert f"lies among the pictures in {others}" in last_error(capsys)
    assert list(others.iterdir()) == []


# --- previews -------------------------------------------------------------------------------


def test_loras_of_previews_are_resolved_before_training(
    tiny_model: Path,
    tiny_sd2: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A LoRA of the previews must exist, be intact, and fit the model's family."""
    monkeypatch.chdir(tmp_path)

    def error_for(prompt: str) -> str:
        more = sets(
            "validation.every_n_steps=2",
            "validation.num_inference_steps=1",
            f'validation.prompts=["{prompt}"]',
        )
        assert train(tiny_model, pictures, "made/ink", *more) == 1
        assert not Path("made/ink").exists()
        return last_error(capsys)

    assert "validation.prompts: LoRA 'glow': there is no folder loras" in error_for(
        "a <lora:glow:1>"
    )
    Path("loras").mkdir()
    make_lora(load_model(tiny_sd2), Path("loras/glow.safetensors"), {}, 0.1)
    assert "did you mean glow?" in error_for("a <lora:glwo:1>")
    assert "validation.prompts: loras/glow.safetensors: its 192 layers" in error_for(
        "a <lora:glow:1>"
    )
    Path("loras/glow.safetensors").write_bytes(b"nothing")
    assert "glow.safetensors" in error_for("a <lora:glow:1>")
    off = sets(
        "validation.every_n_steps=0", 'validation.prompts=["a <lora:none:1>"]', "train.steps=1"
    )
    assert train(tiny_model, pictures, "made/ink", *off) == 0
