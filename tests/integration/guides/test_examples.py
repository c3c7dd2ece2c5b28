"""The scripts of examples/ run as they are."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import lorasmith
from helpers.paths import REPOSITORY
from lorasmith.core.safetensors_io import load_tensors

EXAMPLES = REPOSITORY / "examples"


def run_example(name: str, *arguments: object) -> None:
    """Run an example's ``main`` in this process."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], None] = module.main
    main([str(argument) for argument in arguments])


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert len(names) == 6
    assert [name for name in names if f'"{name}"' not in tested] == []


def test_training_from_python_prints_the_loss_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("train_in_python", "--out", tmp_path, "--steps", 5, "--image-steps", 2)
    assert "step 5: loss 0." in capsys.readouterr().out
    with_tag, without = (Image.open(tmp_path / f"{n}.png") for n in ("with_tag", "without_tag"))
    assert with_tag.size == without.size == (128, 128)
    assert with_tag.tobytes() != without.tobytes()
    assert (tmp_path / "inkmono.safetensors").is_file()


def test_custom_loss_trains_other_weights_than_the_built_in_one(tmp_path: Path) -> None:
    run_example("custom_loss", "--out", tmp_path / "huber", "--steps", 2)
    ours = load_tensors(tmp_path / "huber" / "inkmono.safetensors")
    assert any(tensor.any() for name, tensor in ours.items() if "lora_up" in name)


def test_adapters_on_a_plain_unet_become_a_lora_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("lora_on_your_unet", tmp_path / "mine.safetensors", "--steps", 11)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in lines[:2]]
    assert all(0 < loss < 10 for loss in losses)
    assert re.fullmatch(r".*mine\.safetensors: \d+ layers, [\d,]+ parameters", lines[-1])
    assert lorasmith.lora_info(tmp_path / "mine.safetensors").family == "sd1"


def test_drawing_with_a_callback_shows_the_stages(tmp_path: Path) -> None:
    run_example("draw_with_callback", "a cat", tmp_path / "steps.png", "--steps", 2)
    sheet = Image.open(tmp_path / "steps.png")
    assert sheet.width > 3 * 128
    assert sheet.getextrema() != ((255, 255),) * 3


@pytest.mark.slow
def test_merging_and_evaluating_writes_a_file_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("custom_loss", "--out", tmp_path, "--steps", 2)
    other = tmp_path / "inkmono.safetensors"
    run_example(
        "merge_and_evaluate",
        tmp_path / "inkmono",
        other,
        "--out",
        tmp_path / "m",
        "--seeds",
        2,
        "--image-steps",
        2,
    )
    merged = load_tensors(tmp_path / "m" / "merged.safetensors")
    ranks = {t.shape[0] for name, t in merged.items() if name.endswith("lora_down.weight")}
    assert max(ranks) > 16
    assert (tmp_path / "m" / "evaluation" / "evaluation.html").is_file()
    out = capsys.readouterr().out
    assert re.search(r"merged\.safetensors: \d+ layers, rank \d+, norm [\d.]+$", out, re.MULTILINE)
    assert re.search(r"^inkmono: fidelity gain -?[\d.]+%, leak without the tag [\d.]+%$", out, re.M)


def test_toy_diffusion_learns_to_predict_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    run_example("toy_diffusion", tmp_path / "shapes.png", "--steps", 20)
    words = capsys.readouterr().out.split()
    first, last = float(words[2]), float(words[5])
    assert last < 0.7 * first
    assert Image.open(tmp_path / "shapes.png").width > 6 * 64
