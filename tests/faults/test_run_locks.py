"""Two runs of one name: the second is refused, and nothing of the first is lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from helpers.training.feature_runs import two_features, write_pictures
from helpers.training.pretrain_runs import PretrainRuns, make_data
from helpers.training.train_commands import (
    checkpoint_steps,
    during_step,
    last_error,
    list_files,
    press_ctrl_c,
    sets,
    train,
)
from helpers.two_processes import in_two_processes
from lorasmith.cli import run
from lorasmith.cli.demo.files import clear_previous
from lorasmith.core import file_lock
from lorasmith.core.file_lock import FileLock, LockedError, LockRecord
from lorasmith.core.process import ProcessIdentity
from lorasmith.runs.paths import RunPaths
from lorasmith.runs.run_lock import RunLock, lock_runs

THIS_PROCESS = ProcessIdentity.current()
DEAD = replace(THIS_PROCESS, pid=2**22 + 1)  # above the largest process number of Linux
ELSEWHERE = replace(THIS_PROCESS, host="node7", boot="another", pid=77)
HOLDER = """
import sys, time
from pathlib import Path
from lorasmith.core.file_lock import FileLock
FileLock(Path(sys.argv[1]), Path(sys.argv[1]), "wait").acquire()
print("held", flush=True)
time.sleep(60)
"""


def make_lock(folder: Path) -> FileLock:
    return FileLock(folder / "run.lock", folder, "wait for it")


def write_record(folder: Path, holder: ProcessIdentity, silent_seconds: float = 0.0) -> Path:
    """Write the record that a process left, and how long ago it gave a sign of life."""
    path = folder / "run.lock.json"
    path.write_text(json.dumps(asdict(LockRecord("abc", 1.7e9, holder))))
    (folder / "run.lock").touch()
    then = time.time() - silent_seconds
    os.utime(path, (then, then))
    return path


@contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Hold the lock in another process."""
    command = [sys.executable, "-c", HOLDER, str(folder / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def no_system_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk without locks."""

    def refuse(descriptor: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(file_lock, "_system_lock", refuse)


# --- one lock -------------------------------------------------------------------------------


def test_lock_is_exclusive_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = make_lock(tmp_path), make_lock(tmp_path)
    first.acquire()
    with pytest.raises(LockedError, match=rf"in use by process {os.getpid()} on .* since 20"):
        second.acquire()
    first.verify()
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.acquire()
    second.release()


def test_lock_of_a_living_process_is_refused_and_of_a_killed_one_taken_over(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        for break_lock in (False, True):
            with pytest.raises(LockedError, match=f"in use by process {process.pid} on"):
                make_lock(tmp_path).acquire(break_lock)
        process.kill()
        process.wait()
        lock = make_lock(tmp_path)
        lock.acquire()
        lock.release()


@pytest.mark.usefixtures("no_system_lock")
def test_record_alone_locks_where_the_disk_has_no_locks(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        with pytest.raises(LockedError, match=f"process {process.pid} on"):
            make_lock(tmp_path).acquire(break_lock=True)
        process.kill()
        process.wait()
        lock = make_lock(tmp_path)
        lock.acquire()
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
            make_lock(tmp_path).acquire()
        lock.release()


@pytest.mark.usefixtures("no_system_lock")
@pytest.mark.parametrize(
    "holder", [DEAD, replace(THIS_PROCESS, start="1"), replace(THIS_PROCESS, boot="before")]
)
def test_lock_of_a_dead_process_of_this_machine_is_taken_over(
    tmp_path: Path, holder: ProcessIdentity
) -> None:
    """Gone, its number used again, or the machine started again since: `acquire` does not raise."""
    write_record(tmp_path, holder, silent_seconds=600.0)
    make_lock(tmp_path).acquire()


@pytest.mark.parametrize("has_system_lock", [True, False])
def test_lock_of_another_machine_depends_on_its_signs_of_life(
    tmp_path: Path, has_system_lock: bool, request: pytest.FixtureRequest
) -> None:
    """A disk's own locks may hold between processes of one machine only."""
    if not has_system_lock:
        request.getfixturevalue("no_system_lock")
    record = write_record(tmp_path, ELSEWHERE, silent_seconds=30.0)
    for break_lock in (False, True):
        with pytest.raises(LockedError, match=r"process 77 on node7 since 2023-11-14 22:13 UTC; w"):
            make_lock(tmp_path).acquire(break_lock)
    write_record(tmp_path, ELSEWHERE, silent_seconds=720.0)
    with pytest.raises(LockedError, match=r"no sign of life for 12 minutes; .* --break-lock"):
        make_lock(tmp_path).acquire()
    lock = make_lock(tmp_path)
    lock.acquire(break_lock=True)
    lock_record = LockRecord.read(record)
    assert lock_record is not None
    assert lock_record.holder == THIS_PROCESS
    lock.release()


def test_process_of_another_container_is_not_taken_for_dead(tmp_path: Path) -> None:
    assert replace(DEAD, namespace="pid:[1]").is_alive() is None
    assert DEAD.is_alive() is False
    assert THIS_PROCESS.is_alive() is True


def test_signs_of_life_are_compared_on_the_disks_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path, ELSEWHERE, silent_seconds=10.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is years ahead
    with pytest.raises(LockedError, match="process 77 on node7"):
        make_lock(tmp_path).acquire(break_lock=True)


def test_holder_renews_its_record(tmp_path: Path) -> None:
    lock = make_lock(tmp_path)
    lock.acquire()
    os.utime(tmp_path / "run.lock.json", (1e9, 1e9))
    lock.beat()
    assert (tmp_path / "run.lock.json").stat().st_mtime > 1.5e9
    lock.release()


def test_damaged_record_does_not_lock_forever(tmp_path: Path) -> None:
    """Passing is the assertion: `acquire` raises for a lock that is held."""
    for text in ("", "{", "[]", '{"token": 1}', "\x00\xff", "[" * 50_000, " " * 2**17):
        (tmp_path / "run.lock.json").write_text(text)
        lock = make_lock(tmp_path)
        lock.acquire()
        lock.release()


@pytest.mark.parametrize(
    "change",
    [{"since": "abc"}, {"since": None}, {"since": 1e300}, {"since": float("nan")}, {"since": -1}]
    + [{"holder": {**asdict(ELSEWHERE), **wrong}} for wrong in ({"pid": "../.."}, {"host": 7})],
    ids=["text", "null", "huge", "nan", "negative", "path-as-pid", "number-as-host"],
)
def test_record_with_impossible_values_does_not_lock_forever(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """Passing is the assertion; the record is that of a holder that is on another machine."""
    record = write_record(tmp_path, ELSEWHERE)
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    lock = make_lock(tmp_path)
    lock.acquire()
    lock.release()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_pipe_as_a_record_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.lock.json")
    lock = make_lock(tmp_path)
    lock.acquire()
    lock.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_lock_file_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        make_lock(tmp_path).acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_lock_that_was_taken_over_is_noticed(tmp_path: Path) -> None:
    lock, other = make_lock(tmp_path), make_lock(tmp_path)
    lock.acquire()
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock.json").unlink()
    lock.verify()  # somebody tidied up: it is taken again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock", "run.lock.json"]
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock.json").unlink()
    other.acquire()
    with pytest.raises(LockedError, match=f"process {os.getpid()} .* has taken it over"):
        lock.verify()
    lock.release()
    other.verify()  # what is another's was left alone
    other.release()


def test_many_processes_never_hold_a_lock_at_once(tmp_path: Path) -> None:
    """Each counts up without any other care; taking, removing and giving back race."""
    code = """
import sys, time
from pathlib import Path
from lorasmith.core.file_lock import FileLock, LockedError
folder = Path(sys.argv[1])
done = 0
while done < 40:
    lock = FileLock(folder / "run.lock", folder, "wait")
    try:
        lock.acquire()
    except LockedError:
        time.sleep(0.001)
        continue
    count = folder / "count"
    number = int(count.read_text())
    count.write_text(str(number + 1))
    lock.release()
    done += 1
"""
    (tmp_path / "count").write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0] * 4
    assert (tmp_path / "count").read_text() == "160"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


# --- locks of runs --------------------------------------------------------------------------


@contextmanager
def running(*runs: RunPaths) -> Iterator[RunLock]:
    with lock_runs(runs) as lock:
        yield lock


def test_second_run_of_a_name_is_refused_and_the_first_ends_as_alone(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, statuses = f"{tmp_path}/out/ink", []

    def start_again(_: object) -> None:
        before = list_files(tmp_path / "out")
        statuses.append(train(tiny_model, pictures, out))
        statuses.append(run(["train", "--out", out, "--resume"]))
        assert list_files(tmp_path / "out") == before

    with during_step(4, start_again):
        more = sets("train.checkpoint_every_n_steps=2", "train.log_every_n_steps=1")
        assert train(tiny_model, pictures, out, *more) == 0
    assert statuses == [1, 1]
    error = capsys.readouterr().err
    assert error.count(f"error: {out} is in use by process {os.getpid()} on ") == 2
    assert "stop it, or choose another --out" in error
    assert [json.loads(line)["step"] for line in (tmp_path / "out/ink/log.jsonl").open()] == [
        *range(1, 7)
    ]
    assert (tmp_path / "out/ink.safetensors").is_file()
    assert not [file for file in list_files(tmp_path / "out") if ".lock" in file]


def test_two_folders_never_write_one_lora_file(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A features run ``ink`` with the feature ``cat`` writes ``ink-cat.safetensors``."""
    feature = RunPaths(lora=tmp_path / "ink-cat.safetensors", folder=tmp_path / "ink" / "cat")
    with running(feature):
        assert train(tiny_model, pictures, f"{tmp_path}/ink-cat") == 1
        assert "ink-cat.safetensors is in use by process" in last_error(capsys)
    assert not (tmp_path / "ink-cat").exists()
    assert not (tmp_path / "ink").exists()


def test_demo_does_not_clear_a_living_one(tmp_path: Path) -> None:
    paths = RunPaths.from_name(f"{tmp_path}/demo")
    paths.checkpoints.mkdir(parents=True)
    with running(paths), pytest.raises(LockedError, match="in use by process"):
        clear_previous(paths)
    assert paths.checkpoints.is_dir()
    clear_previous(paths)
    assert not paths.checkpoints.exists()


@pytest.mark.parametrize("mode", ["staged", pytest.param("joint", marks=pytest.mark.slow)])
def test_features_run_holds_its_name_and_those_of_its_loras(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    for number, (folder, tag) in enumerate((("curly", "curlyqx"), ("cook", "cookqz"))):
        write_pictures(tmp_path / folder, tag, number)
    file = two_features(tmp_path, tiny_model, mode=mode, name="both")
    loras = tmp_path / "loras"
    for name in ("both", "both-cookqz"):
        with running(RunPaths.from_name(f"{loras}/{name}")):
            assert run(["train", str(file)]) == 1
            assert "is in use by process" in last_error(capsys)
    statuses = []

    def start_again(_: object) -> None:
        statuses.append(run(["train", str(file)]))
        statuses.append(train(tiny_model, tmp_path / "curly", f"{loras}/both-cookqz"))

    with during_step(1, start_again):
        assert run(["train", str(file)]) == 0
    assert statuses == [1, 1]
    assert not [name for name in list_files(loras) if ".lock" in name]


def test_sweep_holds_its_name_and_those_of_its_loras(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = []
    command = [
        "sweep", "--data", str(pictures), "--tag", "inkmono", "--out", f"{tmp_path}/tried",
        "-m", str(tiny_model), "--steps", "2", "--vary", "lora.rank=2,4",
        *sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false"),
    ]  # fmt: skip

    def start_again(_: object) -> None:
        statuses.append(run(command))
        statuses.append(train(tiny_model, pictures, f"{tmp_path}/tried/rank2"))

    with during_step(1, start_again):
        assert run(command) == 0
    assert statuses == [1, 1]
    assert capsys.readouterr().err.count("is in use by process") == 2
    assert not [name for name in list_files(tmp_path / "tried") if ".lock" in name]


def test_pretraining_holds_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = PretrainRuns(tmp_path)
    make_data(runs.data)
    statuses: list[int] = []
    from lorasmith.pretraining.loop import PretrainLoop

    train_step = PretrainLoop.train_step

    def start_again(self: PretrainLoop, step: int, *arguments: object) -> None:
        if step == 2 and not statuses:
            statuses.append(runs.pretrain("clip", runs.clip))
            statuses.append(runs.pretrain("clip", runs.clip, options=("--resume",)))
        train_step(self, step, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PretrainLoop, "train_step", start_again)
    assert runs.pretrain("clip", runs.clip) == 0
    assert statuses == [1, 1]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("is in use by process" in line for line in errors)
    assert all(line.endswith("choose another train.output_dir") for line in errors)
    assert not [name for name in list_files(runs.clip) if ".lock" in name]


def test_run_on_another_machine_is_refused_until_its_lock_is_broken(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ink"
    with during_step(3, press_ctrl_c):
        assert train(tiny_model, pictures, str(out)) == 130
    resume = ["train", "--out", str(out), "--resume"]
    write_record(out, ELSEWHERE, silent_seconds=20.0)
    for options in ([], ["--break-lock"]):
        assert run([*resume, *options]) == 1
        assert f"{out} is in use by process 77 on node7 since" in last_error(capsys)
    write_record(out, ELSEWHERE, silent_seconds=400.0)
    assert run(resume) == 1
    assert last_error(capsys).endswith("if it is dead, go on with --break-lock")
    assert run([*resume, "--break-lock"]) == 0


def test_run_whose_lock_was_broken_writes_nothing_more(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ink"

    def take_over(_: object) -> None:
        (out / "run.lock").unlink()
        write_record(out, ELSEWHERE)

    with during_step(5, take_over):
        more = sets("train.checkpoint_every_n_steps=2")
        assert train(tiny_model, pictures, str(out), *more) == 1
    error = last_error(capsys)
    assert "process 77 on node7 since 2023-11-14 22:13 UTC has taken it over" in error
    assert checkpoint_steps(out) == [2, 4]
    assert not (tmp_path / "ink.safetensors").exists()
    assert (out / "run.lock.json").is_file()  # the other's


def test_folder_removed_under_a_run_does_not_cost_its_result(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ink"
    with during_step(3, lambda _: shutil.rmtree(out)):
        assert train(tiny_model, pictures, str(out)) == 0
    assert (tmp_path / "ink.safetensors").is_file()


@pytest.mark.slow
def test_only_the_main_process_locks_and_all_are_refused(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = f"{tmp_path}/ink"
    command = ["train", "--data", str(pictures), "--tag", "inkmono", "--out", out]
    command += ["-m", str(tiny_model), "--steps", "2", *sets("train.batch_size=2")]
    command += sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false")
    with running(RunPaths.from_name(out)):
        assert in_two_processes(run, command) == [1, 1]
    assert in_two_processes(run, command) == [0, 0]
    assert not [name for name in list_files(tmp_path) if ".lock" in name]
