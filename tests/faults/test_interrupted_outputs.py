"""What a run owes after it was cut short, and what may fail without costing the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers.training.feature_runs import two_features
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
from lorasmith.core.errors import LorasmithWarning, OutputError
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.inference.pipeline import Pipeline
from lorasmith.loops import tracking
from lorasmith.reports.pages import evaluation
from lorasmith.training.outputs import export
from lorasmith.training.validation.previews import Previews

SAVING = ("train.save_every_n_steps=2", "train.checkpoint_every_n_steps=2", "train.ema_decay=0.9")
EXPORT = "lorasmith.training.builtin_callbacks.export_lora"


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def lora_files(folder: Path) -> dict[str, tuple[dict[str, bytes], dict[str, str]]]:
    """Return the bytes of all tensors and the metadata of a run's LoRA files by their names.

    Without the date of writing; safetensors writes metadata in any order.
    """
    return {path.name: read_lora(path) for path in folder.glob("*.safetensors")}


def read_lora(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    tensors = {name: value.numpy().tobytes() for name, value in load_file(path).items()}
    metadata = load_metadata(path)
    del metadata["modelspec.date"]
    return tensors, metadata


def preview_files(folder: Path) -> dict[str, bytes]:
    found = (folder / "previews").rglob("*.png")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


@pytest.fixture
def unbroken(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run without a stop; all runs of a test have one identity, which their files name."""
    monkeypatch.setattr(
        "lorasmith.training.progress.uuid4", lambda: type("Id", (), {"hex": "a" * 32})
    )
    folder = tmp_path / "unbroken" / "ink"
    assert train(tiny_model, pictures, str(folder), *sets(*SAVING, *VALIDATION)) == 0
    return folder


# --- LoRA files on the way ------------------------------------------------------------------


def test_lora_file_missing_after_a_kill_is_written_by_the_resumed_run(
    unbroken: Path, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """Killed between the checkpoint of step 4 and its LoRA file."""
    out = tmp_path / "cut" / "ink"
    write = export.export_lora

    def write_or_die(state: Any, path: Path) -> None:
        if path.name == "ink-000004.safetensors":
            raise Killed
        write(state, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EXPORT, write_or_die)
        with pytest.raises(Killed):
            train(tiny_model, pictures, str(out), *sets(*SAVING, *VALIDATION))
    assert checkpoint_steps(out)[-1] == 4
    assert "ink-000004.safetensors" not in lora_files(out)
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert lora_files(out) == lora_files(unbroken)
    assert {"ink-000002.safetensors", "ink-000004.safetensors", "ink-000006.safetensors"} <= set(
        lora_files(out)
    )
    final = [read_lora(folder.with_name("ink.safetensors")) for folder in (out, unbroken)]
    assert final[0] == final[1]


@pytest.mark.parametrize("mode", [pytest.param("staged", marks=pytest.mark.slow), "joint"])
def test_lora_files_of_features_missing_after_a_kill_are_written(
    tiny_model: Path, tmp_path: Path, mode: str
) -> None:
    file = two_features(tmp_path, tiny_model, mode=mode, save_every_n_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EXPORT, kill)
        with pytest.raises(Killed):
            run(["train", str(file)])
    assert run(["train", str(file), "--resume"]) == 0
    for tag in ("curlyqx", "cookqz"):
        names = {path.name for path in (tmp_path / "loras/both" / tag).glob("*.safetensors")}
        assert names == {f"both-{tag}-{step:06d}.safetensors" for step in (2, 4)}


# --- previews -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 4])
def test_previews_of_a_stopped_run_are_drawn_by_the_resumed_one(
    unbroken: Path, tiny_model: Path, pictures: Path, tmp_path: Path, step: int
) -> None:
    """The stop comes in a step with previews, or while the base model's are drawn."""
    out = tmp_path / "cut" / "ink"
    generate = Previews.generate

    def stop_at_the_start(self: Previews, step: int, *rest: Any) -> object:
        if step == 0:
            press_ctrl_c()
        return generate(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch, during_step(step if step > 1 else 0, press_ctrl_c):
        if step == 1:
            patch.setattr(Previews, "generate", stop_at_the_start)
        assert train(tiny_model, pictures, str(out), *sets(*SAVING, *VALIDATION)) == 130
    assert checkpoint_steps(out)[-1] == step
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert preview_files(out) == preview_files(unbroken)
    assert lora_files(out) == lora_files(unbroken)


def test_stop_while_previews_are_drawn_saves_their_step(
    unbroken: Path, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut" / "ink"
    generate = Pipeline.generate
    calls = []

    def stop_in_the_second(self: Pipeline, *arguments: Any) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            press_ctrl_c()
        return generate(self, *arguments)

    more = sets(*SAVING, *VALIDATION, "train.checkpoint_every_n_steps=100")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "generate", stop_in_the_second)
        assert train(tiny_model, pictures, str(out), *more) == 130
    assert checkpoint_steps(out) == [2]
    assert {name.partition("/")[0] for name in preview_files(out)} == {"step-000000"}
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert preview_files(out) == preview_files(unbroken)


def test_stop_in_the_last_step_says_how_to_get_its_previews(
    unbroken: Path,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cut" / "ink"
    with during_step(6, press_ctrl_c):
        assert train(tiny_model, pictures, str(out), *sets(*SAVING, *VALIDATION)) == 0
    warning = capsys.readouterr().err
    assert "previews/step-000006: not drawn, as the run was asked to stop" in warning
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert preview_files(out) == preview_files(unbroken)


def refuse(path: Path) -> None:
    raise OutputError(f"cannot write {path}: No space left on device")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutputError("cannot write a.png: No space left"), "cannot write a.png: No space left"),
        (ValueError("odd sampler"), "ValueError: odd sampler"),
        pytest.param(
            OSError(28, "No space left on device"),
            "No space left on device",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_previews_that_fail_are_a_warning_after_their_steps_checkpoint(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    out, saved = tmp_path / "ink", []

    def fail(self: Pipeline, *_: object) -> None:
        saved.append(checkpoint_steps(out)[-1:])
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "generate", fail)
        assert train(tiny_model, pictures, str(out), *sets(*SAVING, *VALIDATION)) == 0
    assert saved == [[], [2], [4], [6]]
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if reason in line and "the training goes on" in line]
    assert len(warnings) == 4
    assert all(line.startswith("warning: ") for line in lines)
    assert (tmp_path / "ink.safetensors").is_file()
    assert run(["train", "--out", str(out), "--resume"]) == 0  # draws what it can make up for
    assert {name.partition("/")[0] for name in preview_files(out)} == {"step-000000", "step-000006"}


def test_preview_folder_that_cannot_be_made_is_a_warning(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ink"

    def put_a_file_there(_: object) -> None:
        shutil.rmtree(out / "previews")
        (out / "previews").write_text("in the way")

    with during_step(1, put_a_file_there):
        assert train(tiny_model, pictures, str(out), *sets(*VALIDATION)) == 0
    assert "previews" in capsys.readouterr().err
    assert (tmp_path / "ink.safetensors").is_file()


# --- pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TypeError("odd log")])
def test_report_that_fails_is_a_warning(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorasmith.reports.pages.run.render_run_page", fail)
        assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no report in {tmp_path}/ink: {type(error).__name__}: ")


def test_evaluation_keeps_its_results_without_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise ValueError("odd chart")

    monkeypatch.setattr(evaluation, "evaluation_to_dict", lambda results: {"gain": results})
    monkeypatch.setattr(evaluation, "render_evaluation_page", fail)
    (tmp_path / "evaluation.html").write_text("of other results")
    with pytest.warns(LorasmithWarning, match="no evaluation page in .*ValueError: odd chart"):
        evaluation.write_evaluation(tmp_path, 0.5)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"gain": 0.5}
    assert not (tmp_path / "evaluation.html").exists()


def remove(file: Path) -> None:
    file.unlink()
    file.mkdir()


def nest(file: Path) -> None:
    file.write_text("a = " + "[" * 5000)


def cut_off(file: Path) -> None:
    file.write_text("[data\n")


def overwrite(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")


DAMAGE = [
    nest,
    *(
        pytest.param(damage, marks=pytest.mark.slow)
        for damage in (
            cut_off,
            overwrite,
            remove,
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_of_an_earlier_feature_do_not_fail_the_run(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    file = two_features(tmp_path, tiny_model)
    folder = tmp_path / "loras" / "both"
    with during_step(6, lambda _: damage(folder / "curlyqx" / "run.toml")):
        assert run(["train", str(file)]) == 0
    assert (tmp_path / "loras/both-cookqz.safetensors").is_file()
    assert "cookqz" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["run.toml", "summary.json"])
def test_damaged_file_of_a_variant_does_not_fail_a_sweep(
    tiny_model: Path, pictures: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "tried"
    command = [
        "sweep", "--data", str(pictures), "--tag", "inkmono", "--out", str(out), "-m",
        str(tiny_model), "--steps", "2", "--vary", "lora.rank=2,4", "--max-parallel", "1",
        *sets("train.device=cpu", "validation.every_n_steps=0", "track.tensorboard=false"),
    ]  # fmt: skip

    with during_step(3, lambda _: (out / "rank2" / name).write_text("{")):
        assert run(command) == 0
    states = {
        item["name"]: item["state"]
        for item in json.loads((out / "sweep.json").read_text())["variants"]
    }
    assert states["rank4"] == "all steps done"
    assert "its files cannot be read" in states["rank2"]
    assert run([*command, "--resume"]) == 0


def test_damaged_log_does_not_stop_a_resume(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ink"
    with during_step(4, press_ctrl_c):
        assert train(tiny_model, pictures, str(out), *sets("train.log_every_n_steps=1")) == 130
    with (out / "log.jsonl").open("ab") as stream:
        stream.write(b'null\n{"loss": 1}\n\xff\xfe\n')
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert [line["step"] for line in log_lines(out)] == [1, 2, 3, 4, 5, 6]


def test_tracker_that_fails_does_not_end_a_run(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no route")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking._TensorBoardLogger, "log", fail)
        more = sets("track.tensorboard=true", "train.log_every_n_steps=1")
        assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "ink: TensorBoard gave up: ConnectionError: no route; the run goes on" in line
    assert len(log_lines(tmp_path / "ink")) == 6


# --- errors that do end a run ---------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "lorasmith.training.builtin_callbacks.save_checkpoints",
        EXPORT,
        "lorasmith.training.outputs.logger.RunLogger.write_line",
        "lorasmith.training.validation.loss.ValidationLoss.measure",
    ],
)
@pytest.mark.parametrize(
    "error",
    [OutputError("cannot write x"), pytest.param(RuntimeError("odd"), marks=pytest.mark.slow)],
)
def test_errors_say_how_to_resume(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    error: Exception,
) -> None:
    out = tmp_path / "ink"
    module, _, name = where.rpartition(".")

    def arm(_: object) -> None:
        def fail(*_: object) -> None:
            raise error

        patch.setattr(where, fail)

    with pytest.MonkeyPatch.context() as patch, during_step(4, arm):
        assert train(tiny_model, pictures, str(out), *sets(*SAVING, *VALIDATION)) == 1
    message = last_error(capsys)
    saved = 2 if name == "save_checkpoints" or "validation" in module or name == "write_line" else 4
    assert f"the last checkpoint (step-0000000{saved}) is kept" in message
    command = f"go on with: lorasmith train {out}/run.toml --resume"
    assert message.endswith(command)
    assert run(["train", "--out", str(out), "--resume"]) == 0
    assert not [name for name in list_files(out) if "tmp" in name]


def test_errors_of_a_new_run_say_that_it_starts_anew(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("odd")

    with during_step(1, fail):
        assert train(tiny_model, pictures, f"{tmp_path}/ink") == 1
    assert last_error(capsys).endswith(
        "the start (no checkpoint yet) is kept, the same command starts anew"
    )
