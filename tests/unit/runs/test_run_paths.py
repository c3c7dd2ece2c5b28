"""Where a run writes, and whether it may."""

from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import OutputError
from lorasmith.loops.checkpoint import save_checkpoint
from lorasmith.runs.paths import RunPaths


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("ink", "loras/ink.safetensors", "loras/ink"),
        ("ink.v1.5", "loras/ink.v1.5.safetensors", "loras/ink.v1.5"),
        ("some/path/ink", "some/path/ink.safetensors", "some/path/ink"),
        ("./ink", "ink.safetensors", "ink"),
        ("/abs/ink", "/abs/ink.safetensors", "/abs/ink"),
    ],
)
def test_name_without_a_folder_is_placed_below_loras(name: str, file: str, folder: str) -> None:
    paths = RunPaths.from_name(name)
    assert (paths.lora, paths.folder) == (Path(file), Path(folder))
    assert paths.name == name.rpartition("/")[2]


@pytest.mark.parametrize(
    "existing",
    ["ink.safetensors", "ink", "ink/notes.txt", "ink/log.jsonl/x", "ink/ink-best.safetensors",
     "ink/checkpoints"],
)  # fmt: skip
def test_existing_files_are_neither_overwritten_nor_changed(tmp_path: Path, existing: str) -> None:
    paths = RunPaths.from_name(f"{tmp_path}/ink")
    paths.check_can_create()
    (tmp_path / existing).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / existing).write_text("mine")
    with pytest.raises(OutputError, match="already exists and is not overwritten"):
        paths.check_can_create()
    assert (tmp_path / existing).read_text() == "mine"


def test_leftovers_of_an_unfinished_run_are_replaced(tmp_path: Path) -> None:
    paths = RunPaths.from_name(f"{tmp_path}/ink")
    paths.prepare_folder("first", is_new=True)
    paths.log.write_text("lines")
    paths.report.write_text("a page")
    (tmp_path / "ink" / ".lorasmith-tmp-1-run.toml").write_text("half")
    for file in ("previews/step-000000/0000.png", "tensorboard/events", "checkpoints/step-1/x"):
        (paths.folder / file).parent.mkdir(parents=True)
        (paths.folder / file).write_text("content")
    (paths.checkpoints / ".lorasmith-tmp-1-step-00000002").mkdir()
    (tmp_path / ".lorasmith-tmp-1-ink.safetensors").write_text("half")
    (tmp_path / ".lorasmith-tmp-1-other.safetensors").write_text("of another")
    paths.check_can_create()
    assert paths.settings.read_text() == "first"
    paths.prepare_folder("second", is_new=True)
    assert sorted(p.name for p in paths.folder.iterdir()) == ["pictures.json", "run.toml"]
    assert paths.settings.read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lorasmith-tmp-1-other.safetensors",
        "ink",
    ]


def test_run_with_a_checkpoint_is_resumed_and_not_started_again(tmp_path: Path) -> None:
    paths = RunPaths.from_name(f"{tmp_path}/ink")
    with pytest.raises(OutputError, match="holds no checkpoint to resume from; start without"):
        paths.check_can_resume()
    paths.prepare_folder("first", is_new=True)
    paths.log.write_text("lines")
    save_checkpoint(paths.checkpoints, 7, {"a": torch.ones(1)}, {}, 2)
    (paths.checkpoints / ".lorasmith-tmp-1-step-00000009").mkdir()
    with pytest.raises(OutputError, match=r"an unfinished run \(step-00000007\); go on with "
                       r"lorasmith train .*ink/run\.toml --resume, or choose another"):  # fmt: skip
        paths.check_can_create()
    paths.check_can_resume()
    paths.prepare_folder("second", is_new=False)
    assert paths.settings.read_text() == "second"
    assert paths.log.read_text() == "lines"
    assert [p.name for p in paths.checkpoints.iterdir()] == ["step-00000007"]


def test_lora_file_of_an_unfinished_run_is_not_taken_by_a_feature(tmp_path: Path) -> None:
    """A features run ``ink`` with the feature ``cat`` writes ``ink-cat.safetensors``."""
    single = RunPaths.from_name(f"{tmp_path}/ink-cat")
    single.folder.mkdir()
    single.settings.touch()
    feature = RunPaths(lora=single.lora, folder=tmp_path / "ink" / "cat")
    with pytest.raises(OutputError, match=r"the run in .*ink-cat writes this file"):
        feature.check_no_conflicts()
    single.check_no_conflicts()


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to folder"):
        RunPaths.from_name(f"{tmp_path}/file/ink").check_can_create()


def test_resume_command_names_the_settings_of_the_full_run(tmp_path: Path) -> None:
    part = RunPaths(tmp_path / "a.safetensors", tmp_path / "a", tmp_path, command="sweep")
    assert part.resume_command == f"lorasmith sweep {tmp_path}/run.toml --resume"
