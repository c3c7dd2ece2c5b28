"""Runs that end early: Ctrl-C, values that are not finite, memory, disks, names."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from helpers.training.train_commands import (
    VALIDATION,
    checkpoint_steps,
    during_step,
    last_error,
    list_files,
    log_lines,
    press_ctrl_c,
    sets,
    train,
)
from lorasmith.cli import run
from lorasmith.training.step.train_step import TrainStep
from lorasmith.training.validation.previews import Previews

CHECKPOINT = ["manifest.json", "state.json", "tensors.safetensors"]


# --- names that are taken -------------------------------------------------------------------


def test_existing_lora_is_not_overwritten(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ink.safetensors").write_text("mine")
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "ink.safetensors already exists and is not overwritten" in last_error(capsys)
    assert (tmp_path / "ink.safetensors").read_text() == "mine"
    assert not (tmp_path / "ink").exists()


def test_run_is_never_mixed_with_another_of_its_name(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    before = {file: (tmp_path / file).read_bytes() for file in list_files(tmp_path)}
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--rank", "2") == 1
    assert "ink.safetensors already exists" in last_error(capsys)
    assert {file: (tmp_path / file).read_bytes() for file in list_files(tmp_path)} == before
    (tmp_path / "ink.safetensors").unlink()
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--rank", "2") == 1
    error = last_error(capsys)
    assert re.search(
        r"unfinished run \(step-00000006\); go on with lorasmith train .* --resume", error
    )
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--rank", "2", "--resume") == 1
    assert "lora.rank: this run was started with 16 and cannot go on with 2" in last_error(capsys)
    assert train(tiny_model, pictures, f"{tmp_path}/other", "--resume") == 1
    assert "there is no run" in last_error(capsys)


# --- Ctrl-C ---------------------------------------------------------------------------------


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "ink"
    with during_step(4, press_ctrl_c):
        assert train(tiny_model, pictures, str(out), *sets("train.log_every_n_steps=1")) == 130
    (line,) = capsys.readouterr().err.splitlines()
    command = f"lorasmith train {out}/run.toml --resume"
    assert line == f"interrupted: stopped after step 4 of 6, all saved; go on with: {command}"
    assert list_files(tmp_path / "out") == [
        *(f"ink/checkpoints/step-00000004/{name}" for name in CHECKPOINT),
        "ink/log.jsonl",
        "ink/pictures.json",
        "ink/run.toml",
    ]
    assert run(command.split()[1:]) == 0
    assert [line["step"] for line in log_lines(out)] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "out" / "ink.safetensors").is_file()


def test_second_ctrl_c_stops_at_once(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ink"

    def press_twice(step: TrainStep) -> None:
        press_ctrl_c(step)
        press_ctrl_c(step)

    with during_step(4, press_twice) as steps:
        assert (
            train(tiny_model, pictures, str(out), *sets("train.checkpoint_every_n_steps=2")) == 130
        )
    assert len(steps) == 4
    error = capsys.readouterr().err
    assert "stopped at once; the last checkpoint (step-00000002) is kept, go on with: " in error
    assert checkpoint_steps(out) == [2]


def test_ctrl_c_cancels_previews(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, drawn = Previews.generate, []

    def draw(self: Previews, step: int, *arguments: object) -> object:
        if step == 2:
            press_ctrl_c()
        drawn.append(step)
        return plain(self, step, *arguments)

    monkeypatch.setattr(Previews, "generate", draw)
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets(*VALIDATION)) == 130
    assert drawn == [0, 2]
    assert [p.name for p in (tmp_path / "ink/previews").glob("step-*")] == ["step-000000"]
    assert checkpoint_steps(tmp_path / "ink") == [2]  # so that a resumed run can draw them


def test_ctrl_c_while_the_lora_is_written_leaves_no_half_file(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasmith.core import safetensors_io

    plain = safetensors_io.save_file

    def half(tensors: object, path: Path, metadata: object) -> None:
        if "ink.safetensors" not in path.name:
            plain(tensors, path, metadata)
            return
        path.write_bytes(b"half")
        press_ctrl_c()

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_io, "save_file", half)
        assert train(tiny_model, pictures, f"{tmp_path}/out/ink") == 130
    assert not any(file.endswith("ink.safetensors") for file in list_files(tmp_path / "out"))
    assert run(["train", "--out", f"{tmp_path}/out/ink", "--resume"]) == 0
    assert (tmp_path / "out/ink.safetensors").stat().st_size > 1000


# --- values that are not finite -------------------------------------------------------------


def test_nothing_is_saved_after_a_loss_that_is_not_finite(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gradient of step 4 is not finite: weights and files stay those of step 3."""
    spoilt: list[torch.nn.Parameter] = []

    def spoil(step: TrainStep) -> None:
        spoilt.append(step._parameters[1])
        spoilt[0].register_hook(lambda gradient: gradient * torch.nan)

    more = sets(
        "train.checkpoint_every_n_steps=3",
        "train.log_every_n_steps=5",
        "train.save_every_n_steps=4",
    )
    with during_step(4, spoil) as steps:
        more += sets("train.batch_size=2")
        assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 1
    error = last_error(capsys)
    names = ", ".join(f"ball{number}.png" for number in steps[3])
    assert f"not finite at step 4, with the images {names}; " in error
    assert "nothing was saved since the last checkpoint (step-00000003)" in error
    assert checkpoint_steps(tmp_path / "ink") == [3]
    assert bool(spoilt[0].isfinite().all())
    assert not list((tmp_path / "ink").glob("*.safetensors"))
    assert run(["train", "--out", f"{tmp_path}/ink", "--resume"]) == 0


def test_run_that_failed_before_a_checkpoint_can_be_restarted(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = sets("train.learning_rate=1e30", "train.lr_warmup_steps=0")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *wild) == 1
    error = last_error(capsys)
    assert re.search(r"not finite at step \d, with the images ball\d\.png, ", error)
    assert "nothing was saved since the start (no checkpoint yet)" in error
    assert list_files(tmp_path / "ink") == ["log.jsonl", "pictures.json", "run.toml"]
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0


# --- memory and disk ------------------------------------------------------------------------


def raise_out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_out_of_memory_in_a_step_keeps_the_checkpoint_and_advises(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with during_step(5, raise_out_of_memory):
        more = sets("train.checkpoint_every_n_steps=2")
        assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 1
    error = last_error(capsys)
    assert "out of memory at step 5; the last checkpoint (step-00000004) is kept" in error
    advice = "Lower train.batch_size (now 8) and raise train.gradient_accumulation_steps (now 1)"
    assert advice in error
    halves = sets("train.batch_size=4", "train.gradient_accumulation_steps=2")
    assert run(["train", "--out", f"{tmp_path}/ink", "--resume", *halves]) == 0


@pytest.mark.parametrize(
    "function", ["validation.previews.Pipeline.generate", "validation.loss.ValidationLoss.mean"]
)
def test_out_of_memory_in_a_validation_is_a_warning(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    function: str,
) -> None:
    monkeypatch.setattr(f"lorasmith.training.{function}", raise_out_of_memory)
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets(*VALIDATION)) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) >= 4  # at steps 0, 2, 4 and 6
    assert all(
        re.match(r"warning: (out of memory in .* at step \d; the training goes on|no rep)", line)
        for line in warnings
    )
    assert (tmp_path / "ink.safetensors").is_file()


def test_disk_without_room_is_refused_before_anything_is_written(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("lorasmith.loops.memory.shutil.disk_usage", lambda path: usage)
    assert train(tiny_model, pictures, f"{tmp_path}/out/ink") == 1
    assert re.search(r"checkpoints and LoRA files need \d{8} bytes", last_error(capsys))
    assert list_files(tmp_path / "out") == []


def test_model_that_does_not_fit_the_settings_is_refused(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "lora.targets=atention") == 1
    assert "did you mean attention" in last_error(capsys)
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "data.resolution=60") == 1
    assert "data.resolution: 60 is not a multiple of 64; use 64" in last_error(capsys)
    for size, message in (("abc", "'abc' is not WIDTHxHEIGHT"), ("60x64", "60x64 is not in steps")):
        assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets(f"validation.size={size}")) == 1
        assert f"validation.size: {message}" in last_error(capsys)
    assert not (tmp_path / "ink").exists()
    assert (
        train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "train.mixed_precision=fp16") == 1
    )
    assert "train.mixed_precision: fp16 needs a GPU; use bf16 or fp32" in last_error(capsys)
    assert train(tmp_path / "none", pictures, f"{tmp_path}/ink") == 1
    assert "no such folder" in last_error(capsys)
