import json
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from helpers.doubles import DISK_CALLS, FailingDisk
from lorasmith.core.errors import LorasmithWarning, OutputError, WeightsError
from lorasmith.loops import checkpoint
from lorasmith.loops.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_checkpoint_at,
    load_latest_checkpoint,
    remove_leftovers,
    save_checkpoint,
    verify_checkpoint,
)


def save(folder: Path, step: int, keep: int = 9) -> Path:
    tensors = {"a": torch.full((4,), float(step)), "b": torch.arange(3)}
    return save_checkpoint(folder, step, tensors, {"note": {"x": [step]}}, keep)


def test_saved_checkpoint_loads_again(tmp_path: Path) -> None:
    path = save(tmp_path / "new", 7)
    loaded = load_latest_checkpoint(tmp_path / "new")
    assert loaded is not None
    assert path.name == "step-00000007"
    assert (loaded.step, loaded.state["note"]) == (7, {"x": [7]})
    assert torch.equal(loaded.tensors["a"], torch.full((4,), 7.0))
    assert torch.equal(loaded.tensors["b"], torch.arange(3))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["step-00000007"]


def test_folder_without_checkpoints_has_no_latest_checkpoint(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 200):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000200"]


def test_old_checkpoints_are_removed_only_after_the_new_checkpoint_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def refuse(path: Path) -> None:
        assert path.name == "step-00000002"
        raise WeightsError("damaged")

    monkeypatch.setattr(checkpoint, "verify_checkpoint", refuse)
    with pytest.raises(WeightsError, match="damaged"):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    verify_checkpoint(tmp_path / "step-00000001")


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, {"a": torch.zeros(1)}, {}, 2)
    assert load_checkpoint(tmp_path / "step-00000003").tensors.keys() == {"a"}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_flipped_bit_falls_back_to_the_previous_checkpoint(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=f"{name} is damaged"):
        load_checkpoint(file.parent)
    with pytest.warns(LorasmithWarning, match="is damaged.*continuing from step 1"):
        loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 1


def spoil_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{", encoding="utf-8")


def spoil_schema(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["schema"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "tensors.safetensors").unlink(), "incomplete"),
        (lambda path: (path / "state.json").unlink(), "incomplete"),
        (spoil_manifest, "incomplete"),
        (spoil_schema, "written by a newer lorasmith; update"),
    ],
)
def test_no_readable_checkpoint_is_an_error_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(save(tmp_path, 1))
    with pytest.raises(WeightsError, match=message):
        load_latest_checkpoint(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_pipe_in_a_checkpoint_does_not_block(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 1) / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(WeightsError, match="incomplete"):
        load_latest_checkpoint(tmp_path)


def test_manifest_that_vouches_for_nothing_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text('{"schema": 1, "sha256": {}}', encoding="utf-8")
    with pytest.raises(WeightsError, match="incomplete"):
        load_latest_checkpoint(tmp_path)


def test_unfinished_folders_are_not_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".lorasmith-tmp-1-step-00000009")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000008")
    (tmp_path / "step-00000008" / "manifest.json").unlink()
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 1


def test_any_flipped_bit_of_the_manifest_is_noticed_or_harmless(tmp_path: Path) -> None:
    """What is loaded is what was saved, or there is an error; never something else."""
    file = save(tmp_path, 1) / "manifest.json"
    content = file.read_bytes()
    noticed = 0
    for offset in range(len(content)):
        for bit in range(8):
            data = bytearray(content)
            data[offset] ^= 1 << bit
            file.write_bytes(data)
            try:
                loaded = load_checkpoint(file.parent)
            except WeightsError:
                noticed += 1
            else:
                assert torch.equal(loaded.tensors["a"], torch.ones(4))
    assert noticed > 0.9 * 8 * len(content)


def test_checkpoint_of_a_step_is_that_step_or_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert load_checkpoint_at(tmp_path, 1).step == 1
    with pytest.raises(WeightsError, match=r"step-00000002: tensors\.safetensors is damaged"):
        load_checkpoint_at(tmp_path, 2)
    with pytest.raises(WeightsError, match="no checkpoint of step 3; there are steps 1, 2"):
        load_checkpoint_at(tmp_path, 3)
    with pytest.raises(WeightsError, match="no checkpoint of step 3; there are none"):
        load_checkpoint_at(tmp_path / "absent", 3)


@pytest.mark.parametrize("keep", [1, 2])
def test_resuming_earlier_removes_later_checkpoints(tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 9):
        save(tmp_path, step)
    (tmp_path / "step-00000009" / "state.json").write_text("{", encoding="utf-8")
    save(tmp_path, 3, keep)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-00000002", "step-00000003"][-keep:]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1)
    shutil.copytree(path, path.with_name(".lorasmith-tmp-1-step-00000002"))
    (tmp_path / ".lorasmith-tmp-1-run.toml").write_text("half", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "previews" / "step-000001").mkdir(parents=True)
    for name in (
        "previews/.lorasmith-tmp-1-previews.json",
        "previews/step-000001/.lorasmith-tmp-1-a",
    ):
        (tmp_path / name).write_text("half", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "checkpoints", "checkpoints/step-00000001",
        *(f"checkpoints/step-00000001/{name}"
          for name in ("manifest.json", "state.json", "tensors.safetensors")),
        "notes.txt", "previews", "previews/step-000001",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_process_killed_at_any_moment_leaves_a_checkpoint(tmp_path: Path, kills: int) -> None:
    """A process that only saves is killed at random; the next continues after its last save."""
    chance = random.Random(0)
    folder = tmp_path / "checkpoints"
    started = time.perf_counter()
    save(folder, 1, keep=2)
    duration = time.perf_counter() - started
    reached = 1
    for _ in range(kills):
        kill_while_saving(folder, reached, chance.uniform(0.0, 3.0 * duration))
        remove_leftovers(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # not even the newest one may be damaged
            loaded = load_latest_checkpoint(folder)
        assert loaded is not None
        assert loaded.step > reached
        assert torch.equal(loaded.tensors["a"], torch.full((4,), float(loaded.step)))
        reached = loaded.step
        assert all(path.name.startswith("step-") for path in folder.iterdir())


def kill_while_saving(folder: Path, reached: int, seconds: float) -> None:
    """Let another process save one checkpoint, and kill it some time after."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            torch.set_num_threads(1)  # there are no others after a fork
            for step in range(reached + 1, reached + 10_000):
                save(folder, step, keep=2)
                os.write(writing, b".")
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)


def test_full_disk_at_any_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    outcomes = []
    for allowed in range(60):
        folder = tmp_path / str(allowed)
        save(folder, 1)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, allowed, [*DISK_CALLS, (Path, "mkdir")])
            try:
                save(folder, 2, keep=1)
                outcomes.append("saved")
            except OutputError:
                outcomes.append("refused")
        loaded = load_latest_checkpoint(folder)
        assert loaded is not None
        assert loaded.step == 2 or outcomes[-1] == "refused"
        leftovers = [p.name for p in folder.iterdir() if not p.name.startswith("step-")]
        assert leftovers == []
        if outcomes[-1] == "saved":
            assert disk.calls <= allowed
            break
    assert outcomes.count("refused") >= 8
    assert outcomes[-1] == "saved"


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(WeightsError, match="not finite"):
        save_checkpoint(tmp_path, 2, {"a": torch.tensor(float("nan"))}, {}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
