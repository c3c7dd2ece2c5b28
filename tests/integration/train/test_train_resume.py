"""A stopped run resumes as if it had not been stopped: after any step, kill or full disk."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.doubles import FailingDisk
from helpers.tensors import assert_same
from helpers.training.train_commands import (
    VALIDATION,
    checkpoint_steps,
    checkpoint_tensors,
    during_step,
    last_error,
    log_lines,
    press_ctrl_c,
    sets,
    train,
)
from lorasmith.cli import run
from lorasmith.loops.checkpoint import load_latest_checkpoint

MOVING = (
    "train.ema_decay=0.9",
    "train.batch_size=4",
    "train.log_every_n_steps=1",
    "lora.dropout=0.2",
    "data.flip_aug=true",
    "data.caption_dropout_rate=0.2",
    "train.loss.noise_offset=0.1",
    "train.learning_rate=0.01",
    "data.validation_split=0.2",
    *VALIDATION,
)
"""Everything on that could differ after a resume."""


def go_on(out: Path, *more: str) -> int:
    return run(["train", "--out", str(out), "--resume", *more])


def assert_same_runs(actual: Path, expected: Path, step: int = 6) -> None:
    """Weights, averages, optimizer, figures and file are the same, bit for bit."""
    assert_same(checkpoint_tensors(actual, step), checkpoint_tensors(expected, step))
    assert log_lines(actual) == log_lines(expected)
    files = [folder.with_name(f"{folder.name}.safetensors") for folder in (actual, expected)]
    assert_same(*(load_file(file) for file in files))
    best = [folder / f"{folder.name}-best.safetensors" for folder in (actual, expected)]
    if best[0].exists() or best[1].exists():
        assert_same(*(load_file(file) for file in best))


@pytest.fixture(scope="session")
def straight(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Six images, an uninterrupted run, and the images of each of its steps."""
    from PIL import Image

    root = tmp_path_factory.mktemp("straight")
    pictures = root / "pictures"
    pictures.mkdir()
    for number in range(6):
        Image.effect_noise((64, 64), 40 + 30 * number).convert("RGB").save(
            pictures / f"ball{number}.png"
        )
        (pictures / f"ball{number}.txt").write_text(f"ball number {number}, inkmono style\n")
    with during_step(0, press_ctrl_c) as steps:
        assert train(tiny_model, pictures, f"{root}/ink", *sets(*MOVING)) == 0
    return pictures, root / "ink", steps


@pytest.mark.slow
def test_three_stops_in_a_row_change_nothing(
    straight: tuple, tiny_model: Path, tmp_path: Path
) -> None:
    pictures, unbroken, expected_steps = straight
    out, taken_steps = tmp_path / "ink", []
    with during_step(1, press_ctrl_c) as steps:
        assert train(tiny_model, pictures, str(out), *sets(*MOVING)) == 130
    taken_steps += steps
    for more in (2, 1):
        with during_step(more, press_ctrl_c) as steps:
            assert go_on(out) == 130
        taken_steps += steps
    with during_step(0, press_ctrl_c) as steps:
        assert go_on(out) == 0
    taken_steps += steps
    assert taken_steps == expected_steps
    assert_same_runs(unbroken, out)


@pytest.mark.parametrize(
    "step",
    [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)],
)
def test_stop_after_any_step_changes_nothing(
    straight: tuple, tiny_model: Path, tmp_path: Path, step: int
) -> None:
    pictures, unbroken, _ = straight
    with during_step(step, press_ctrl_c):
        assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets(*MOVING)) == 130
    assert go_on(tmp_path / "ink") == 0
    assert_same_runs(unbroken, tmp_path / "ink")


def test_changed_validation_seed_measures_the_base_again(
    straight: tuple, tiny_model: Path, tmp_path: Path
) -> None:
    """Otherwise losses before and after could not be compared with the base model's."""
    pictures, out = straight[0], tmp_path / "ink"
    with during_step(3, press_ctrl_c):
        assert train(tiny_model, pictures, str(out), *sets(*MOVING)) == 130
    assert go_on(out, "--set", "validation.loss_seed=5") == 0
    lines = [line for line in log_lines(out) if "validation_loss_base" in line]
    bases = [entry["validation_loss_base"] for entry in lines if entry["step"] <= 3]
    later_bases = [entry["validation_loss_base"] for entry in lines if entry["step"] > 3]
    assert bases
    assert len(set(bases)) == len(set(later_bases)) == 1
    assert bases[0] != later_bases[0]
    best = load_latest_checkpoint(out / "checkpoints")
    assert best is not None
    assert best.state["progress"]["best_step"] > 3


@pytest.mark.parametrize(
    "optimizer",
    [
        "adafactor",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw8bit", "prodigy", "lion")),
    ],
)
def test_every_optimizer_resumes_exactly(
    straight: tuple, tiny_model: Path, tmp_path: Path, optimizer: str
) -> None:
    pictures = straight[0]
    sort = sets(f"train.optimizer={optimizer}", "train.log_every_n_steps=1", "train.batch_size=3")
    assert train(tiny_model, pictures, f"{tmp_path}/one", *sort) == 0
    with during_step(3, press_ctrl_c):
        assert train(tiny_model, pictures, f"{tmp_path}/two", *sort) == 130
    assert go_on(tmp_path / "two") == 0
    assert_same_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_resume_from_an_explicit_step_drops_later_checkpoints(
    straight: tuple, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, unbroken, _ = straight
    out = tmp_path / "ink"
    overrides = sets(*MOVING, "train.checkpoint_every_n_steps=2", "train.keep_checkpoints=9")
    assert train(tiny_model, pictures, str(out), *overrides) == 0
    assert checkpoint_steps(out) == [2, 4, 6]
    (out / "checkpoints/step-00000004/state.json").unlink()
    assert run(["train", "--out", str(out), "--resume", "step-4"]) == 1
    assert "step-00000004: incomplete" in last_error(capsys)
    assert run(["train", "--out", str(out), "--resume", "step-5"]) == 1
    assert "no checkpoint of step 5; there are steps 2, 4, 6" in last_error(capsys)
    with during_step(1, press_ctrl_c):
        assert run(["train", "--out", str(out), "--resume", "step-2"]) == 130
    assert checkpoint_steps(out) == [2, 3]
    assert go_on(out) == 0
    assert_same_runs(unbroken, out)


def flip_a_bit(folder: Path) -> None:
    file = folder / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def make_newer(folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_a_bit, "is damaged"),
        pytest.param(lose_a_file, "incomplete", marks=pytest.mark.slow),
        pytest.param(make_newer, "a newer lorasmith", marks=pytest.mark.slow),
    ],
)
def test_damaged_checkpoint_is_reported_and_the_previous_is_used(
    straight: tuple,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    pictures, unbroken, _ = straight
    out = tmp_path / "ink"
    with during_step(4, press_ctrl_c):
        overrides = sets(*MOVING, "train.checkpoint_every_n_steps=2")
        assert train(tiny_model, pictures, str(out), *overrides) == 130
    spoil(out / "checkpoints" / "step-00000004")
    capsys.readouterr()
    assert go_on(out) == 0
    error = capsys.readouterr().err
    assert reason in error
    assert "continuing from step 2" in error
    assert_same_runs(unbroken, out)


# --- kills and full disks -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_repeatedly_killed_run_equals_an_uninterrupted_run(
    straight: tuple, tiny_model: Path, tmp_path: Path
) -> None:
    pictures = straight[0]
    out, chance = tmp_path / "ink", random.Random(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has no other threads
    try:
        overrides = sets(*MOVING, "train.checkpoint_every_n_steps=1")
        assert train(tiny_model, pictures, f"{tmp_path}/alone", *overrides) == 0
        for _ in range(8):
            steps = checkpoint_steps(out) if (out / "checkpoints").is_dir() else []
            if (tmp_path / "ink.safetensors").exists():
                break
            resume = ["--resume"] if steps else []
            if not resume:
                shutil.rmtree(out, ignore_errors=True)
            kill_after_a_save(
                ["train", *arguments(tiny_model, pictures, out, overrides), *resume],
                out / "checkpoints",
                chance.uniform(0.0, 0.2),
            )
            assert load_latest_checkpoint(out / "checkpoints") is not None
        if not (tmp_path / "ink.safetensors").exists():
            assert go_on(out) == 0
    finally:
        torch.set_num_threads(threads)
    assert_same_runs(tmp_path / "alone", out)
    leftovers = [p for p in tmp_path.rglob(".lorasmith-tmp-*") if "ink" in str(p)]
    assert leftovers == []


def arguments(tiny_model: Path, pictures: Path, out: Path, more: list[str]) -> list[str]:
    needed = ["--data", str(pictures), "--tag", "inkmono", "--out", str(out), "-m", str(tiny_model)]
    quick = sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false")
    return [*needed, *quick, "--steps", "6", *more]


def kill_after_a_save(command: list[str], folder: Path, seconds: float) -> None:
    """Run a command in another process, and kill it a moment after its next checkpoint."""
    before = set(folder.iterdir()) if folder.is_dir() else set()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os._exit(run(command))
        os._exit(9)
    for _ in range(6000):
        files = set(folder.iterdir()) if folder.is_dir() else set()
        if {path for path in files - before if path.name.startswith("step-")}:
            break
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.slow
def test_disk_failing_at_any_write_leaves_a_checkpoint(
    straight: tuple, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Nth write, sync or rename of a whole run fails, and then it goes on."""
    pictures, unbroken, _ = straight
    out = tmp_path / "ink"
    with during_step(2, press_ctrl_c):
        assert train(tiny_model, pictures, str(out), *sets(*MOVING)) == 130
    safe = tmp_path / "safe"
    shutil.copytree(out, safe)
    outcomes = []
    for allowed in (0, 3, 9, 14, 17, 20, 23, 26):
        shutil.rmtree(out)
        shutil.copytree(safe, out)
        (tmp_path / "ink.safetensors").unlink(missing_ok=True)
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, allowed)
            outcomes.append(go_on(out))
        error = capsys.readouterr().err
        assert "unexpected" not in error
        assert "No space left on device" in error
        checkpoint = load_latest_checkpoint(out / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.step in (2, 6)
    assert go_on(out) == 0
    assert_same_runs(unbroken, out)
    assert outcomes.count(1) >= 6
