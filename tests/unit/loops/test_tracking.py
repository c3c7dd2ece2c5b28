import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.fake_wandb import FakeWandb
from lorasmith.core.errors import ConfigError
from lorasmith.loops.tracking import (
    ScopedLogger,
    Tracker,
    WandbRun,
    check_wandb,
    open_wandb,
    read_log,
)


def write(folder: Path, steps: range, first: int = 0, tensorboard: bool = False) -> None:
    with Tracker(folder, tensorboard, steps_done=first) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1.0 / step})


def test_logged_metrics_are_read_back(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 4))
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert all(record["time"] > 1.7e9 for record in records)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_truncated_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert [record["step"] for record in read_log(log)] == [1, 2]


def test_resumed_log_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    write(tmp_path, range(4, 8), first=3)
    assert [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()] == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip


def test_new_run_starts_a_new_log(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    write(tmp_path, range(1, 3))
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_tensorboard_receives_the_same_metrics(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")][:2] == [(1, 1.0), (2, 0.5)]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", enabled=False) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_account")
def test_wandb_receives_the_same_metrics_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = WandbRun("project", "ink", {"train": {"steps": 3}})
    for _ in range(2):
        with Tracker(tmp_path, tensorboard=False, wandb=run) as tracker:
            tracker.log(7, {"loss": 0.5})
    first, figures, end, second_init = fake.calls[:4]
    assert first[1]["mode"] == "offline"
    assert (first[1]["project"], first[1]["name"]) == ("project", "ink")
    assert first[1]["config"] == {"train": {"steps": 3}}
    assert figures == ("log", {"loss": 0.5}, 7)
    assert end == ("finish",)
    assert second_init[1]["id"] == first[1]["id"]  # a resumed run keeps its wandb run
    monkeypatch.setenv("WANDB_API_KEY", "x")
    Tracker(tmp_path, tensorboard=False, wandb=run)
    assert fake.calls[-1][1]["mode"] is None


@pytest.mark.usefixtures("no_account")
def test_trackers_share_a_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with open_wandb(tmp_path / "both", WandbRun("project", "both")) as board:
        for tag in ("a", "b"):
            shared = ScopedLogger(board, tag)
            with Tracker(tmp_path / tag, tensorboard=False, wandb=shared) as tracker:
                tracker.log(7, {"loss": 0.5})
            assert read_log(tmp_path / tag / "log.jsonl")[0]["loss"] == 0.5
        assert fake.calls[1:] == [("log", {"a/loss": 0.5}, 7), ("log", {"b/loss": 0.5}, 7)]
    assert [call[0] for call in fake.calls] == ["init", "log", "log", "finish"]
    assert fake.calls[0][1]["dir"] == str(tmp_path / "both")


def test_missing_wandb_is_named_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'lorasmith\[wandb\]'"):
        Tracker(tmp_path / "run", wandb=WandbRun("p", "n"))
    assert not (tmp_path / "run" / "log.jsonl").exists()
    with pytest.raises(ConfigError, match=r"track\.wandb"):
        check_wandb()


def test_log_of_an_earlier_version_has_the_names_of_today(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 2, "loss": 1.0, "held_out": 0.5, "held_out_gain": 0.25}\n')
    assert read_log(log) == [
        {"step": 2, "loss": 1.0, "validation_loss": 0.5, "validation_loss_gain": 0.25}
    ]
