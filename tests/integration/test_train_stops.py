"""Runs of ``train`` that do not get to their end, and names that are taken."""

import json
import re
import signal
import tomllib
from pathlib import Path

import pytest
from train_commands import error_of, files_under, train

from lorasmith.training.step import Batch, Figures


def test_a_taken_name_is_refused_and_left_alone(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ink.safetensors").write_text("mine")
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert "ink.safetensors exists already and is not written over" in error_of(capsys)
    assert (tmp_path / "ink.safetensors").read_text() == "mine"
    assert not (tmp_path / "ink").exists()


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
