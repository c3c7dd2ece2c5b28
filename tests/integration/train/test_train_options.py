"""Options of a run: accumulation, EMA, validation, other models and optimizers."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.tensors import assert_same
from helpers.training.train_commands import (
    VALIDATION,
    checkpoint_steps,
    checkpoint_tensors,
    during_step,
    list_files,
    log_lines,
    press_ctrl_c,
    sets,
    train,
)
from helpers.two_processes import in_two_processes
from lorasmith.cli import run
from lorasmith.loops.checkpoint import load_checkpoint
from lorasmith.training.validation.loss import ValidationLoss

EVERY_LINE = ("train.log_every_n_steps=1", "train.learning_rate=0.01")

# --- one batch in parts ---------------------------------------------------------------------


def assert_close(first: Path, second: Path, step: int = 6) -> None:
    """Weights agree far better than the distance they moved, 1e-2 a step, and so do figures.

    A few weights may not: Adam makes a whole step of the rounding error of a gradient that is zero
    in truth.
    """
    states = [
        {k: v for k, v in checkpoint_tensors(out, step).items() if k.startswith("module/")}
        for out in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    differences = [(states[0][k] - states[1][k]).abs().flatten() > 5e-4 for k in states[0]]
    assert float(torch.cat(differences).float().mean()) < 0.02
    for a, b in zip(log_lines(first), log_lines(second), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)  # gains are small differences


def test_gradient_accumulation_equals_a_single_batch(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """Six images do not divide evenly into four microbatches, and the result is the same."""
    overrides = sets(*EVERY_LINE, "train.batch_size=8")
    assert train(tiny_model, pictures, f"{tmp_path}/one", *overrides) == 0
    parts = sets("train.batch_size=2", "train.gradient_accumulation_steps=4")
    assert train(tiny_model, pictures, f"{tmp_path}/two", *overrides, *parts) == 0
    assert_close(tmp_path / "one", tmp_path / "two")


def test_gradient_checkpointing_gives_the_same_weights(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    overrides = sets(*EVERY_LINE, "lora.targets=attention,text-encoder")
    assert train(tiny_model, pictures, f"{tmp_path}/one", *overrides) == 0
    more = sets("train.gradient_checkpointing=true")
    assert train(tiny_model, pictures, f"{tmp_path}/two", *overrides, *more) == 0
    assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_equal_a_single_process(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """A batch of five is divided three to two; one process writes, and both exit with 0."""
    (pictures / "ball5.png").unlink()
    more = sets(
        *EVERY_LINE,
        *VALIDATION,
        "train.batch_size=6",
        "data.validation_split=0",
        "train.ema_decay=0.9",
    )
    assert train(tiny_model, pictures, f"{tmp_path}/one", *more) == 0
    arguments = ["train", str(tmp_path / "one" / "run.toml"), "--out", f"{tmp_path}/two"]
    arguments += sets("train.batch_size=3")
    assert in_two_processes(run, arguments) == [0, 0]
    assert_close(tmp_path / "one", tmp_path / "two")
    assert list_files(tmp_path / "one") == list_files(tmp_path / "two")


# --- validation, EMA, files on the way ------------------------------------------------------


def test_validation_is_logged_and_keeps_the_best_lora(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    more = sets(
        *VALIDATION,
        "data.validation_split=0.2",
        "train.save_every_n_steps=3",
        "train.learning_rate=0.03",
        "track.tensorboard=true",
    )
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 0
    out = tmp_path / "ink"
    lines = log_lines(out)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert lines[0].keys() == {
        "step",
        "validation_loss",
        "validation_loss_base",
        "validation_loss_gain",
    }
    assert lines[0]["validation_loss_gain"] == 0.0
    assert len({line["validation_loss_base"] for line in lines}) == 1
    assert lines[-1]["validation_loss"] != lines[0]["validation_loss"]
    assert sorted(p.parent.name for p in out.glob("previews/*/0000.png")) == [
        f"step-{step:06d}" for step in (0, 2, 4, 6)
    ]
    previews = json.loads((out / "previews/previews.json").read_text())
    assert previews[0]["seed"] == 0
    assert previews[0]["prompt"].startswith("ball number ")
    best = min(lines[1:], key=lambda line: line["validation_loss"])["step"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["best_step"], summary["validation_images"], summary["images"]) == (best, 1, 5)
    assert summary["stop_reason"] == "all steps done"
    at_three = load_file(out / "ink-000003.safetensors")
    assert at_three.keys() == load_file(out / "ink-best.safetensors").keys()
    assert_same(load_file(out / "ink-000006.safetensors"), load_file(f"{out}.safetensors"))
    assert list((out / "tensorboard").iterdir())
    assert "<html" in (out / "report.html").read_text()


def test_loss_without_validation_images_has_another_name(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets(*VALIDATION)) == 0
    names = {name for line in log_lines(tmp_path / "ink") for name in line}
    assert {"fixed_loss", "fixed_loss_base", "fixed_loss_gain"} <= names
    assert not any("validation_loss" in name for name in names)
    assert not (tmp_path / "ink" / "ink-best.safetensors").exists()


def test_early_stopping_ends_a_run_whose_validation_loss_does_not_improve(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two of the base model, with and without adapters; then at steps 2, 4, 6 and 8.
    losses = iter([1.0, 1.0, 1.0, 0.5, 0.5, 0.6])

    monkeypatch.setattr(ValidationLoss, "mean", lambda self: next(losses))
    more = sets(*VALIDATION, "data.validation_split=0.3", "train.early_stopping_patience=2")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more, "--steps", "40") == 0
    summary = json.loads((tmp_path / "ink" / "summary.json").read_text())
    assert summary["stop_reason"] == "the validation loss did not improve for 2 validations"
    assert (summary["best_step"], summary["steps"]) == (4, 8)
    assert checkpoint_steps(tmp_path / "ink") == [8]
    monkeypatch.undo()
    out = ["train", "--out", f"{tmp_path}/ink", "--resume"]
    assert run(out) == 0  # nothing left to do
    assert checkpoint_steps(tmp_path / "ink") == [8]


def test_ema_weights_are_saved(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    more = sets(*EVERY_LINE, "train.ema_decay=0.9")
    assert train(tiny_model, pictures, f"{tmp_path}/one", *sets(*EVERY_LINE)) == 0
    assert train(tiny_model, pictures, f"{tmp_path}/two", *more) == 0
    assert log_lines(tmp_path / "one") == log_lines(tmp_path / "two")
    plain, averaged = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    saved = load_checkpoint(tmp_path / "two" / "checkpoints" / "step-00000006")
    for number, name in enumerate(saved.state["layers"]):
        up = averaged[f"{name}.lora_up.weight"].float()
        torch.testing.assert_close(up, saved.tensors[f"ema/{number}.up"], rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(plain[key], averaged[key]) for key in plain)


# --- other models, layers and optimizers ----------------------------------------------------


@pytest.mark.parametrize(
    ("family", "init"),
    [
        ("tiny_model", "compensated"),
        ("tiny_sdxl", "gaussian"),
        pytest.param("tiny_model", "gaussian", marks=pytest.mark.slow),
        pytest.param("tiny_sd2", "gaussian", marks=pytest.mark.slow),
        pytest.param("tiny_sd2", "compensated", marks=pytest.mark.slow),
        pytest.param("tiny_sdxl", "compensated", marks=pytest.mark.slow),
    ],
)
def test_every_family_trains_with_its_text_encoders(
    family: str, init: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    more = sets(
        *VALIDATION,
        *EVERY_LINE,
        "lora.targets=attention+ff,text-encoder",
        f"lora.init={init}",
        "lora.rank=2",
        "train.loss.min_snr_gamma=5",
        "data.validation_split=0.2",
    )
    with during_step(4, press_ctrl_c):
        assert train(model, pictures, f"{tmp_path}/ink", *more) == 130
    assert run(["train", "--out", f"{tmp_path}/ink", "--resume"]) == 0
    lines = [line for line in log_lines(tmp_path / "ink") if "loss" in line]
    assert lines[0]["lr/text"] == pytest.approx(0.5 * lines[0]["lr/unet"])
    file = load_file(tmp_path / "ink.safetensors")
    prefixes = {"tiny_sdxl": ("lora_unet_", "lora_te1_", "lora_te2_")}
    for prefix in prefixes.get(family, ("lora_unet_", "lora_te_")):
        ups = [v for k, v in file.items() if k.startswith(prefix) and k.endswith("up.weight")]
        assert any(bool(up.any()) for up in ups), prefix


def test_learning_rates_of_parts_and_lora_plus_are_logged(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    more = sets(
        *EVERY_LINE,
        "train.loraplus_lr_ratio=4",
        "train.lr_warmup_steps=0.5",
        "lora.overrides=[{targets='mid', learning_rate=0.002, rank=2}]",
    )
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 0
    line = log_lines(tmp_path / "ink")[3]
    rates = {name: rate / line["lr"] for name, rate in line.items() if name.startswith("lr/")}
    assert rates == pytest.approx(
        {"lr/unet down": 1.0, "lr/unet up": 4.0, "lr/mid down": 0.2, "lr/mid up": 0.8}
    )
    rises = [line["lr"] for line in log_lines(tmp_path / "ink")]
    assert rises[:3] == pytest.approx([0.0025, 0.005, 0.0075])  # half of the six steps
    assert rises[3] == pytest.approx(0.01)


def test_settings_of_a_preset_lie_under_all_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[data]\npath="p"\ntag="ink"\n[output]\nname="n"\n[lora]\nrank=5\n')
    for preset in ("style", "subject"):
        assert run(["train", str(file), "--preset", preset, "--print-config"]) == 0
        tree = tomllib.loads(capsys.readouterr().out)
        assert tree["lora"]["rank"] == 5
        assert ("text-encoder" in tree["lora"]["targets"]) == (preset == "subject")
        more = sets("lora.targets=mid")
        assert run(["train", str(file), "--preset", preset, "--print-config", *more]) == 0
        assert tomllib.loads(capsys.readouterr().out)["lora"]["targets"] == "mid"


def test_subject_preset_recommends_class_images(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--preset", "subject") == 0
    assert "note: without images of its class (data.reg_data_dir)" in capsys.readouterr().err


def test_regularisation_images_count_by_their_weight(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "class").mkdir()
    for number in range(3):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / f"class/{number}.png")
    overrides = sets(
        *EVERY_LINE,
        f"data.reg_data_dir={tmp_path}/class",
        "data.reg_caption=a ball",
        "train.batch_size=12",
    )
    for weight in ("0", "0.5", "1"):
        more = sets(f"data.prior_loss_weight={weight}")
        assert train(tiny_model, pictures, f"{tmp_path}/w{weight}", *overrides, *more) == 0
    unweighted, half, full = (
        log_lines(tmp_path / f"w{weight}")[0]["loss"] for weight in ("0", "0.5", "1")
    )
    assert half == pytest.approx((unweighted + full) / 2, rel=1e-5)
    assert unweighted < half < full
