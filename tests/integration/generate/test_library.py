"""``generate`` with a library of LoRAs, with gates and without."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.cli import run
from lorasmith.models.load import load_model


@pytest.fixture(scope="module")
def library(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs that wait for their tags, one with adapters in the text encoder."""
    folder = tmp_path_factory.mktemp("library")
    model = open_model(tiny_model)
    for tag, targets in (("curlyqx", "attention"), ("cookqz", "attention+text-encoder")):
        make_lora(model, folder / f"{tag}.safetensors", {"targets": targets}, 0.5, tag=tag)
    return folder


def generate(prompt: str, out: Path, model: Path, *more: str) -> int:
    shared = ("-n", "2", "--steps", "1", "--device", "cpu", "-m", str(model), "--out", str(out))
    return run(["generate", prompt, *shared, *more])


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / f"000{k}.png")) for k in range(2)]


def are_equal(images: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(images, other, strict=True))


def test_library_is_activated_by_tags_alone(
    library: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {}
    for name, prompt in {"off": "a person", "a": "a curlyqx person", "b": "a cookqz"}.items():
        assert generate(prompt, tmp_path / "base", tiny_model) == 0
        assert generate(prompt, tmp_path / name, tiny_model, "--library", str(library)) == 0
        drawn[name] = are_equal(pictures(tmp_path / name), pictures(tmp_path / "base"))
    assert drawn == {"off": True, "a": False, "b": False}
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line for line in captured.out.splitlines() if "images and grid" not in line]
    assert lines == [
        "no LoRA of the library is activated; its tags are cookqz, curlyqx",
        "activated: curlyqx",
        "activated: cookqz",
    ]


def test_requested_lora_waits_for_its_tag_and_warns(
    library: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--lora-dir", str(library), "--lora", "curlyqx:0.8")
    assert generate("a person", tmp_path / "base", tiny_model) == 0
    capsys.readouterr()
    assert generate("a person", tmp_path / "off", tiny_model, *named) == 0
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith(
        "warning: LoRA curlyqx stays off: its tag 'curlyqx' is not in the prompt; write it there "
        "or use --no-gate"
    )
    assert are_equal(pictures(tmp_path / "off"), pictures(tmp_path / "base"))
    assert generate("a person", tmp_path / "on", tiny_model, *named, "--no-gate") == 0
    assert capsys.readouterr().err == ""
    assert not are_equal(pictures(tmp_path / "on"), pictures(tmp_path / "base"))


def test_trained_lora_is_gated(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From images to a LoRA that a library activates, through the real commands."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(2):
        Image.new("RGB", (64, 64), (40 * k, 90, 200)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a ball, inkmono style")
    settings = [
        "train.steps=2",
        "train.device=cpu",
        "train.learning_rate=0.05",
        "validation.every_n_steps=0",
    ]
    changes = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "loras" / "ink"
    command = [
        "train",
        "--data",
        str(folder),
        "--tag",
        "inkmono",
        "--out",
        str(out),
        "-m",
        str(tiny_model),
    ]
    assert run([*command, *changes]) == 0
    capsys.readouterr()
    assert run(["lora", "info", f"{out}.safetensors", "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)["metadata"]
    assert metadata["lorasmith.gate"] == "prompt"
    assert metadata["lorasmith.tag"] == metadata["modelspec.trigger_phrase"] == "inkmono"
    library = ("--library", str(out.parent))
    assert generate("a ball, inkmono style", tmp_path / "on", tiny_model, *library) == 0
    assert "activated: inkmono" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "it has no LoRA files"),
        (
            lambda folder: (folder.mkdir(), (folder / "x.safetensors").write_bytes(b"damaged")),
            "x.safetensors: not a readable safetensors file",
        ),
    ],
)
def test_invalid_library_is_a_one_line_error(
    prepare, message: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "library")
    more = ("--library", str(tmp_path / "library"))
    assert generate("a person", tmp_path / "out", tiny_model, *more) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert message in error


def test_two_files_with_one_tag_are_a_one_line_error(
    library: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.safetensors").write_bytes((library / "cookqz.safetensors").read_bytes())
    assert generate("a cookqz", tmp_path / "out", tiny_model, "--library", str(folder)) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "2 files have the tag 'cookqz'" in error
    assert "one.safetensors" in error
    assert "two.safetensors" in error
    assert not list((tmp_path / "out").glob("*.png"))


def test_lora_of_another_family_is_a_one_line_error(
    library: Path, tiny_model: Path, tiny_sd2: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Only prompts that activate it fail; a file that fits may replace it."""
    folder = tmp_path / "library"
    foreign = make_lora(load_model(tiny_sd2), folder / "sd2.safetensors", {}, 0.5, tag="cookqz")
    more = ("--library", str(folder))
    assert generate("a person", tmp_path / "out", tiny_model, *more) == 0
    assert capsys.readouterr().err == ""
    assert generate("a cookqz person", tmp_path / "none", tiny_model, *more) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {foreign}: ")
    assert "\n" not in error
    assert "made for SD 2.x, and this model is SD 1.x" in error
    assert "its tag 'cookqz' is in the prompt" in error
    assert not list((tmp_path / "none").glob("*.png"))
    (folder / "own.safetensors").write_bytes((library / "cookqz.safetensors").read_bytes())
    assert generate("a cookqz person", tmp_path / "out", tiny_model, *more) == 0
    assert "activated: cookqz" in capsys.readouterr().out
