"""The commands ``train`` and ``demo`` as a user meets them, in this process."""

import json
import re
import shutil
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from lorasmith.cli import run
from lorasmith.training.step import Batch, Figures


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


def train(tiny_model: Path, pictures: Path, out: str, *more: str) -> int:
    needed = ["--data", str(pictures), "--tag", "inkmono", "--out", out, "-m", str(tiny_model)]
    return run(["train", *needed, "--set", "train.device=cpu", "--steps", "6", *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# --- what is written and where --------------------------------------------------------------


def test_a_bare_name_goes_to_loras(
    tiny_model: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert train(tiny_model, pictures, "ink", "--rank", "3") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("loras/ink.safetensors (")
    assert captured.err == ""

    assert sorted(p.name for p in (tmp_path / "loras").iterdir()) == ["ink", "ink.safetensors"]
    assert sorted(p.name for p in (tmp_path / "loras/ink").iterdir()) == ["log.jsonl", "run.toml"]
    tensors = load_file("loras/ink.safetensors")
    assert len(tensors) == 3 * 128
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert tensors[f"{name}.lora_down.weight"].shape == (3, 16)
    assert tensors[f"{name}.alpha"] == 3.0
    settings = tomllib.loads(Path("loras/ink/run.toml").read_text())
    assert settings["lora"]["rank"] == 3
    assert settings["train"]["steps"] == 6


def test_a_path_is_used_as_it_is(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/some/where/ink.v2") == 0
    names = sorted(p.name for p in (tmp_path / "some/where").iterdir())
    assert names == ["ink.v2", "ink.v2.safetensors"]
    log = (tmp_path / "some/where/ink.v2/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 6
    assert np.isfinite(json.loads(log[-1])["loss"])


def test_the_metadata_names_the_tag_and_no_folders(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    with safe_open(tmp_path / "ink.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "inkmono"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_output_name"] == "ink"
    assert json.loads(metadata["ss_tag_frequency"])["pictures"]["inkmono style"] == 6
    assert str(tmp_path) not in json.dumps(metadata)


def test_the_same_seed_gives_the_same_tensors(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/a") == 0
    assert train(tiny_model, pictures, f"{tmp_path}/b") == 0
    assert train(tiny_model, pictures, f"{tmp_path}/c", "--set", "train.seed=1") == 0
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a if "lora_down" in key)


def test_the_saved_settings_repeat_the_run(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/a", "--set", "train.learning_rate=3e-3") == 0
    assert run(["train", str(tmp_path / "a" / "run.toml"), "--out", f"{tmp_path}/b"]) == 0
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_bf16_trains(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "train.precision=bf16") == 0
    assert all(t.isfinite().all() for t in load_file(tmp_path / "ink.safetensors").values())


# --- using it -------------------------------------------------------------------------------


def test_the_result_changes_pictures_and_unloads_exactly(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    from lorasmith import load_pipeline

    rate = ("--set", "train.learning_rate=0.05")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *rate, "--steps", "12") == 0
    pipe = load_pipeline(tiny_model, device="cpu", lora_dir=tmp_path)

    def draw(prompt: str = "a ball, inkmono style") -> np.ndarray:
        return np.asarray(pipe(prompt, seed=3, steps=3)[0]).astype(int)

    base = draw()
    pipe.load_lora(tmp_path / "ink.safetensors")
    loaded = draw()
    pipe.unload_lora()

    assert abs(loaded - base).max() > 1
    assert np.array_equal(draw(), base)
    assert np.array_equal(draw("a ball, inkmono style <lora:ink:1>"), loaded)
    assert np.array_equal(draw("a ball, inkmono style <lora:ink:0>"), base)


def test_diffusers_draws_the_same_picture(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """A trained file in diffusers' own pipeline moves the U-Net's output as it does in ours."""
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")
    from diffusers import StableDiffusionPipeline

    from lorasmith.adapters.formats import load_lora_file
    from lorasmith.adapters.inject import attach
    from lorasmith.models.load import load_model

    rate = ("--set", "train.learning_rate=0.05")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *rate) == 0
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    theirs.load_lora_weights(tmp_path / "ink.safetensors")
    ours = load_model(tiny_model)
    attach(ours, load_lora_file(tmp_path / "ink.safetensors"), 1.0)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.unet(*inputs).sample, theirs.unet(*inputs).sample, rtol=1e-4, atol=1e-4
        )


def test_a_short_run_on_the_embedded_model(tmp_path: Path) -> None:
    """Weight 1 moves the picture towards black and white; weight 0 is the base, bit for bit."""
    import lorasmith
    from lorasmith.cli.demo import DEMO_DATA
    from lorasmith.evaluation.colour import colour_of

    for name in ("owl", "key", "teapot", "turtle"):
        for suffix in (".png", ".txt"):
            shutil.copy(DEMO_DATA / f"{name}{suffix}", tmp_path)
    needed = ["--data", str(tmp_path), "--tag", "inkmono", "--out", f"{tmp_path}/ink"]
    sets = ["device=cpu", "batch_size=4", "learning_rate=0.01", "warmup=0", "schedule=constant"]
    more = [part for one in sets for part in ("--set", f"train.{one}")]
    assert run(["train", *needed, "--steps", "8", *more]) == 0

    pipe = lorasmith.load_pipeline(device="cpu", lora_dir=tmp_path)
    prompts = [f"a bell, inkmono style{lora}" for lora in ("", " <lora:ink:0>", " <lora:ink:1>")]
    base, off, on = pipe(prompts, seed=[3, 3, 3], steps=6)
    assert np.array_equal(np.asarray(base), np.asarray(off))
    assert colour_of([on]).saturation < 0.9 * colour_of([base]).saturation


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
    error = error_of(capsys)
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
def test_wrong_commands_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == 1
    assert message in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


# --- data -----------------------------------------------------------------------------------


def test_no_captions_is_an_error_with_counts(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in pictures.glob("*.txt"):
        text.unlink()
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "6 of 6 pictures have no caption, first ball0.png" in error_of(capsys)
    assert not (tmp_path / "ink").exists()


def test_a_tag_that_no_caption_has_is_an_error(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--tag", "inkmonos") == 1
    assert "none of its 6 captions contains the tag 'inkmonos'" in error_of(capsys)
    assert not (tmp_path / "ink").exists()


def test_a_tag_that_some_captions_miss_is_a_warning(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "ball3.txt").write_text("a ball")
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    error = capsys.readouterr().err
    assert re.match(r"warning: .*: 1 of 6 captions do not contain the tag 'inkmono'", error)
    assert (tmp_path / "ink.safetensors").is_file()


def test_a_damaged_picture_is_named(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = pictures / "ball2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "ball2.png: cannot be decoded" in error_of(capsys)


# --- runs that go wrong ---------------------------------------------------------------------


def test_a_taken_name_is_refused_and_left_alone(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ink.safetensors").write_text("mine")
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "ink.safetensors exists already and is not written over" in error_of(capsys)
    assert (tmp_path / "ink.safetensors").read_text() == "mine"
    assert not (tmp_path / "ink").exists()


def files_under(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_ctrl_c_saves_nothing_and_the_same_command_runs_again(
    tiny_model: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from lorasmith.training.step import TrainStep

    plain, calls = TrainStep.__call__, []

    def pressed_at_the_fourth_step(self: TrainStep, batch: Batch) -> Figures:
        calls.append(batch)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return plain(self, batch)

    monkeypatch.setattr(TrainStep, "__call__", pressed_at_the_fourth_step)
    out = f"{tmp_path}/out/ink"
    assert train(tiny_model, pictures, out, "--set", "train.log_every=1") == 130
    assert capsys.readouterr().err.splitlines() == [
        "interrupted: after step 3 of 6; no LoRA was saved, the same command starts anew"
    ]
    assert files_under(tmp_path / "out") == ["ink/log.jsonl", "ink/run.toml"]

    assert train(tiny_model, pictures, out, "--set", "train.log_every=1") == 0
    assert files_under(tmp_path / "out") == ["ink.safetensors", "ink/log.jsonl", "ink/run.toml"]
    log = (tmp_path / "out/ink/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert train(tiny_model, pictures, out) == 1
    assert "ink.safetensors exists already" in error_of(capsys)


def test_ctrl_c_while_saving_leaves_no_half_file(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lorasmith.core.weights.save_file", half)
    assert train(tiny_model, pictures, f"{tmp_path}/out/ink") == 130
    assert files_under(tmp_path / "out") == ["ink/log.jsonl", "ink/run.toml"]


def test_a_failed_run_can_be_run_again(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "train.learning_rate=1e30", "--set", "train.warmup=0")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 1
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    settings = tomllib.loads((tmp_path / "ink" / "run.toml").read_text())
    assert settings["train"]["learning_rate"] < 1


def test_a_loss_that_is_not_finite_saves_nothing(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "train.learning_rate=1e30", "--set", "train.warmup=0")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 1
    error = error_of(capsys)
    assert re.search(r"not finite at step \d, with the pictures ball\d\.png, ", error)
    assert "nothing was saved" in error
    assert not (tmp_path / "ink.safetensors").exists()


def test_a_model_that_does_not_fit_the_wish(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "lora.targets=atention") == 1
    assert "did you mean attention?" in error_of(capsys)
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "data.resolution=60") == 1
    assert "data.resolution: 60 is not a multiple of 64; use 64" in error_of(capsys)
    assert train(tmp_path / "none", pictures, f"{tmp_path}/ink") == 1
    assert "no such folder" in error_of(capsys)


# --- the demo -------------------------------------------------------------------------------


def test_the_demo_runs_and_runs_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from lorasmith.cli import demo

    monkeypatch.setattr(demo, "_SAMPLING_STEPS", 2)
    out = tmp_path / "demo"
    for _ in range(2):
        assert run(["demo", "--out", str(out), "-m", str(tiny_model), "--steps", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = captured.out.splitlines()
    assert printed[: len(printed) // 2][0] == "1/3 drawing 8 pictures with the base model"
    assert [line[:3] for line in printed if not line.startswith(" ")] == [
        "1/3", "2/3", "3/3", "try",
    ] * 2  # fmt: skip
    assert files_under(out) == [
        "base.png", "inkmono.png", "inkmono.safetensors", "inkmono/log.jsonl", "inkmono/run.toml",
        "metrics.json", "taught.png",
    ]  # fmt: skip
    with Image.open(out / "inkmono.png") as grid:
        assert grid.width > 8 * 64
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == ["base", "lora", "taught"]
    assert metrics["taught"]["saturation"] == 0.0
    assert set(metrics["lora"]) == {"saturation", "two_tone"}


def test_the_demo_keeps_what_is_not_its_own(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "inkmono").mkdir()
    (tmp_path / "inkmono" / "mine.txt").write_text("mine")
    assert run(["demo", "--out", str(tmp_path), "-m", str(tiny_model), "--steps", "1"]) == 1
    assert (tmp_path / "inkmono" / "mine.txt").read_text() == "mine"


def test_the_demo_pictures_are_complete_and_not_what_is_shown() -> None:
    from lorasmith.cli.demo import CONCEPTS, DEMO_DATA, TAG
    from lorasmith.data.rows import read_rows
    from lorasmith.data.tags import contains_tag

    rows = read_rows(DEMO_DATA)
    assert len(rows) == 24
    assert all(contains_tag(row.caption, TAG) for row in rows)
    taught = {row.caption.rpartition(",")[0] for row in rows}
    assert taught.isdisjoint(CONCEPTS)
    assert "Copyright (c) Microsoft Corporation" in (DEMO_DATA / "ATTRIBUTION.txt").read_text()
    for row in rows:
        with Image.open(row.file) as picture:
            assert picture.size == (128, 128)
