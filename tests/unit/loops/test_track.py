import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorasmith.loops.track import Tracker, read_log


def write(folder: Path, steps: range, first: int = 0, tensorboard: bool = False) -> None:
    with Tracker(folder, tensorboard, first=first) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1.0 / step})


def test_figures_come_back(tmp_path: Path) -> None:
    write(tmp_path / "run", range(1, 4))
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert all(record["time"] > 1.7e9 for record in records)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert [record["step"] for record in read_log(log)] == [1, 2]


def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    write(tmp_path, range(4, 8), first=3)
    assert [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()] == [
        1, 2, 3, 4, 5, 6, 7,
    ]  # fmt: skip


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    write(tmp_path, range(1, 3))
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_tensorboard_shows_the_same_figures(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")][:2] == [(1, 1.0), (2, 0.5)]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", enabled=False) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
