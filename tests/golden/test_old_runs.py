"""Run folders, LoRA files and settings that are old still open; `record_old.py` wrote them."""

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden_old as old
import golden_runs as golden
import pytest
from golden_settings import TAG

from lorasmith.cli import run
from lorasmith.config.features import load_train_config
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.sweep import load_sweep

Tiny = Callable[[str], Path]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def with_model(golden_folder: Path, tiny_of: Tiny) -> Path:
    """The working folder with the images and the model that old settings name."""
    shutil.copytree(tiny_of("sd1"), golden_folder / "model")
    return golden_folder


@pytest.fixture
def old_loras(golden_folder: Path) -> Path:
    """Old LoRA files."""
    old.unpack("loras", golden_folder)
    return golden_folder / "kept"


@pytest.mark.parametrize("name", old.STOPPED)
def test_old_run_resumes_to_the_result_of_an_uninterrupted_run(
    name: str, with_model: Path, capsys: Captured
) -> None:
    """Its settings keep their values, and its checkpoint is read completely."""
    old.unpack(name, with_model)
    stopped = old.STOPPED[name]
    assert run([stopped.command, f"{old.OUT}/run.toml", "--resume"]) == 0, capsys.readouterr().err
    assert "other settings" not in capsys.readouterr().err
    # Earlier versions stored a LoRA in float32 if one of its tensors lost much in float16; the run
    # keeps such files, and goes on with what is in them.
    result, expected = golden.result(stopped.name)[0], golden.stored(stopped.name)[0]
    golden.assert_same(result, expected, may_differ_in_dtype=True)


@pytest.mark.parametrize("name", old.STOPPED)
def test_report_of_an_old_run_is_written(name: str, with_model: Path, capsys: Captured) -> None:
    old.unpack(name, with_model)
    assert run(["report", old.OUT]) == 0, capsys.readouterr().err
    pages = list(Path(old.OUT).rglob("*.html"))
    assert pages
    assert all("<html" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", old.LORAS)
def test_old_lora_file_is_described(name: str, old_loras: Path, capsys: Captured) -> None:
    assert run(["lora", "info", str(old_loras / f"{name}.safetensors"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["metadata"]["lorasmith.tag"] == TAG
    gate = "token" if name == "gated" else "prompt"
    assert info["metadata"]["lorasmith.gate"] == gate


@pytest.mark.parametrize("name", old.LORAS)
def test_old_lora_file_draws_what_it_drew(name: str, old_loras: Path, tiny_of: Tiny) -> None:
    pipe = golden.open_model(tiny_of("sd1"), old_loras)
    drawn = golden.draw_prompt(pipe, f"a {TAG} person, sea <lora:{name}:3>")
    golden.assert_same_pixels(drawn, golden.pixels(golden.EXPECTED / f"old-{name}.png"))
    base = golden.draw_prompt(pipe, f"a {TAG} person, sea")
    assert abs(drawn.astype(int) - base).max() > golden.STEPS_OF_GREY


@pytest.mark.parametrize("name", old.LORAS)
def test_old_lora_file_is_converted_there_and_back(name: str, old_loras: Path) -> None:
    first, converted, back = (f"kept/{name}{end}.safetensors" for end in ("", "-there", "-back"))
    assert run(["lora", "convert", first, converted, "--to", "diffusers"]) == 0
    assert run(["lora", "convert", converted, back, "--to", "kohya"]) == 0
    golden.assert_same(golden.tensors_in(Path(back)), golden.tensors_in(Path(first)))


BATCH_SIZE, CHUNKS = 12, 4


@pytest.mark.parametrize("file", sorted(old.SETTINGS.glob("*.toml")), ids=lambda file: file.stem)
def test_old_settings_keep_their_values(file: Path) -> None:
    """Keys may be renamed; two values have another unit."""
    kind = load_sweep if file.stem == "sweep" else load_train_config
    current = list(leaves(tomllib.loads(dump_toml(kind(file)))))
    before = list(leaves(tomllib.loads(file.read_text(encoding="utf-8"))))
    assert [value for value in before if value not in (*current, BATCH_SIZE, CHUNKS)] == []
    if BATCH_SIZE in before:
        assert {2, 6} <= {*current}  # a batch of 12 images in 6 parts is 6 batches of 2
    if file.stem == "train":
        assert 75 * CHUNKS in current


def leaves(tree: Any) -> Iterator[Any]:
    """Yield all values in a tree of settings."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(value)
    else:
        yield tree
