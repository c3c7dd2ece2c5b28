"""SIGTERM of schedulers and SIGHUP of closed terminals save what Ctrl-C saves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY
from helpers.training.feature_runs import two_features
from helpers.training.pretrain_runs import PretrainRuns, make_data
from helpers.training.train_commands import (
    checkpoint_steps,
    during_step,
    list_files,
    sets,
    train,
)
from helpers.two_processes import in_two_processes
from lorasmith.cli import run
from lorasmith.loops.stop_signals import stop_on_interrupt
from lorasmith.pretraining.loop import PretrainLoop
from lorasmith.training.run_step import JointTrainStep

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

STATUSES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
QUICK = sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false")


def send(name: str) -> Callable[[object], None]:
    """Return an action that sends this process a signal."""
    return lambda _: signal.raise_signal(getattr(signal, name))


def arguments(model: Path, pictures: Path, out: Path, steps: int = 6) -> list[str]:
    given = ["--data", str(pictures), "--tag", "inkmono", "--out", str(out), "-m", str(model)]
    return ["train", *given, *QUICK, "--steps", str(steps)]


# --- handlers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_repeated_signal_changes_nothing_and_ctrl_c_still_stops_at_once(name: str) -> None:
    with stop_on_interrupt() as request:
        send(name)(None)
        send(name)(None)
        assert request.signal_number == getattr(signal, name)
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")(None)
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL


def test_ignored_and_handled_signals_are_left_alone() -> None:
    """``nohup`` ignores SIGHUP; a program that handles SIGTERM keeps its handler."""
    seen: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with stop_on_interrupt() as request:
        send("SIGHUP")(None)
        send("SIGTERM")(None)
        assert not request.is_requested
    assert seen == [signal.SIGTERM]


def test_second_ctrl_c_from_a_launcher_is_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stop_on_interrupt() as request:
        send("SIGINT")(None)
        send("SIGINT")(None)
        assert request.is_requested


# --- runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_signal_finishes_the_step_saves_and_says_how_to_go_on(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    status: int,
) -> None:
    out = tmp_path / "ink"
    with during_step(4, send(name)):
        assert train(tiny_model, pictures, str(out)) == status
    command = f"lorasmith train {out}/run.toml --resume"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"interrupted: stopped after step 4 of 6, all saved; go on with: {command}"
    assert checkpoint_steps(out) == [4]
    assert run(command.split()[1:]) == 0


@pytest.mark.parametrize("mode", [pytest.param("staged", marks=pytest.mark.slow), "joint"])
def test_features_stop_on_sigterm(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    file = two_features(tmp_path, tiny_model, mode=mode)
    with during_step(3, send("SIGTERM")):
        assert run(["train", str(file)]) == 143
    folder = tmp_path / "loras/both"
    assert checkpoint_steps(folder if mode == "joint" else folder / "curlyqx") == [2, 3]
    assert run(["train", str(file), "--resume"]) == 0
    assert len(list((tmp_path / "loras").glob("*.safetensors"))) == 2


def test_signal_in_the_last_step_of_a_feature_stops_before_the_next(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = two_features(tmp_path, tiny_model)
    with during_step(4, send("SIGHUP")):
        assert run(["train", str(file)]) == 129
    assert "stopped after feature 'curlyqx', 1 of 2, all saved" in capsys.readouterr().err
    assert (tmp_path / "loras/both-curlyqx.safetensors").is_file()
    assert not (tmp_path / "loras/both/cookqz").exists()


def test_sweep_stops_on_sigterm(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    command = arguments(tiny_model, pictures, tmp_path / "tried", 3)
    command = ["sweep", *command[1:], "--vary", "lora.rank=2,4"]
    with during_step(2, send("SIGTERM")):
        assert run(command) == 143
    assert checkpoint_steps(tmp_path / "tried") == [2]
    assert run([*command, "--resume"]) == 0


@pytest.mark.parametrize(
    "kind", ["clip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("vae", "unet"))]
)
def test_pretraining_stops_on_sigterm(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = PretrainRuns(tmp_path_factory.mktemp("pretrain"))
    make_data(place.data)
    for needed in ("clip", "vae", "unet")[: ("clip", "vae", "unet").index(kind)]:
        assert place.pretrain(needed, place.root / needed) == 0
    train_step = PretrainLoop.train_step

    def step_with_signal(self: PretrainLoop, step: int, *rest: object, **more: object) -> None:
        if step == 1:
            send("SIGTERM")(None)
        train_step(self, step, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PretrainLoop, "train_step", step_with_signal)
        assert place.pretrain(kind, place.root / kind) == 143
    assert checkpoint_steps(place.root / kind) == [2]
    assert place.pretrain(kind, place.root / kind, options=("--resume",)) == 0


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal_outside_of_a_loop_ends_any_command_tidily(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    status: int,
) -> None:
    """While images are encoded, nothing is there to be saved: the lock goes, and no file stays."""

    def encode(*_: object, **__: object) -> None:
        send(name)(None)
        send(name)(None)
        raise AssertionError("not stopped")

    monkeypatch.setattr("lorasmith.training.setup.setup.build_dataset", encode)
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == status
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "ink").exists()
    assert not [name for name in list_files(tmp_path) if "lock" in name or "tmp" in name]


# --- processes ------------------------------------------------------------------------------


def start(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    full = [sys.executable, "-m", "lorasmith", *command]
    return subprocess.Popen(full, env=environment, **options)  # type: ignore[call-overload,no-any-return]


def wait_for_checkpoint(folder: Path) -> None:
    for _ in range(2000):
        if list((folder / "checkpoints").glob("step-*")):
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint within 100 s")


LONG = sets("train.checkpoint_every_n_steps=5", "train.keep_checkpoints=1")


@pytest.mark.slow
def test_closed_terminal_saves(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """A session ends: the terminal is gone, progress bar and messages have nowhere to go."""
    import pty

    out = tmp_path / "ink"
    command = [*arguments(tiny_model, pictures, out, 5000), *LONG]
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "lorasmith", *command])
    wait_for_checkpoint(out)
    before = checkpoint_steps(out)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    (step,) = checkpoint_steps(out)
    assert step >= before[-1]
    assert not [name for name in list_files(out) if "lock" in name or "tmp" in name]
    assert run(["train", "--out", str(out), "--resume", "--steps", str(step + 2)]) == 0


@pytest.mark.slow
def test_nohup_outlives_its_terminal(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "ink"
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 (what nohup does)
    command = [*arguments(tiny_model, pictures, out, 60), *LONG]
    with start(command, preexec_fn=ignore, stderr=subprocess.DEVNULL) as process:
        wait_for_checkpoint(out)
        process.send_signal(signal.SIGHUP)
        assert process.wait(200) == 0
    assert (tmp_path / "ink.safetensors").is_file()


def stop_one_rank(rank: int, step: int, command: list[str]) -> int:
    """Run a command in which one process gets SIGTERM in the middle of a step (from 1)."""
    compute, count = JointTrainStep._compute_gradients, 0

    def compute_with_signal(self: JointTrainStep, microbatches: object) -> None:
        nonlocal count
        count += 1
        if count == step and os.environ["RANK"] == str(rank):
            send("SIGTERM")(None)
        compute(self, microbatches)  # type: ignore[arg-type]

    JointTrainStep._compute_gradients = compute_with_signal  # type: ignore[method-assign]
    return run(command)


@pytest.mark.slow
def test_signal_to_one_process_stops_all_at_the_same_step(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    command = arguments(tiny_model, pictures, tmp_path / "ink", 40)
    command += sets("train.batch_size=2", "train.log_every_n_steps=1000")
    assert in_two_processes(stop_one_rank, 1, 3, command) == [143, 143]
    (step,) = checkpoint_steps(tmp_path / "ink")
    assert 3 <= step < 40
    resumed = ["train", "--out", f"{tmp_path}/ink", "--resume"]
    assert in_two_processes(run, resumed) == [0, 0]
    assert (tmp_path / "ink.safetensors").is_file()
