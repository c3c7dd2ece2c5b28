"""The commands ``generate`` and ``model info`` as a user meets them, in this process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lorasmith.cli import run
from lorasmith.core.errors import WeightsError
from lorasmith.inference import safety
from lorasmith.inference.pipeline import load_pipeline, tensor_to_pil
from lorasmith.inference.safety import SafetyChecker
from lorasmith.models.files import hub
from lorasmith.registries import SAMPLERS


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def generate(tiny_model: Path, out: Path, *more: str) -> int:
    arguments = ["--steps", "2", "-m", str(tiny_model), "--out", str(out), "--device", "cpu"]
    return run(["generate", "a red apple", *arguments, *more])


def single_line(captured: str) -> str:
    lines = captured.strip().splitlines()
    assert len(lines) == 1, captured
    assert "Traceback" not in captured
    return lines[0]


def test_images_and_grid_are_written(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, tmp_path / "out", "-n", "3", "--size", "64x32", "--seed", "5") == 0
    captured = capsys.readouterr()
    assert captured.out == f"3 images and grid.png in {tmp_path / 'out'}\n"
    assert captured.err == ""
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "grid.png"]
    with Image.open(tmp_path / "out" / "0002.png") as image:
        assert image.size == (64, 32)
        assert image.info["parameters"].startswith("a red apple\nSteps: 2, Sampler: DDIM")
        assert "Seed: 7, Size: 64x32, Model hash: " in image.info["parameters"]


def test_random_seed_is_reported(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, tmp_path / "out", "-n", "2", "--seed", "-1") == 0
    line = capsys.readouterr().out.splitlines()[0]
    seed = int(line.removeprefix("seed: "))
    for index in range(2):
        with Image.open(tmp_path / "out" / f"000{index}.png") as image:
            assert f"Seed: {seed + index}, " in image.info["parameters"]
    assert generate(tiny_model, tmp_path / "out", "--seed", "-2") == 1
    assert "seed: -2 is not possible" in single_line(capsys.readouterr().err)


def test_registered_sampler_is_used_by_name(tiny_model: Path, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    configs = []

    def toy(config: Mapping[str, Any]) -> DDIMScheduler:
        configs.append(config)
        return DDIMScheduler.from_config(dict(config))

    SAMPLERS.register("toy", toy)
    try:
        assert generate(tiny_model, tmp_path / "out", "-n", "1", "--sampler", "toy") == 0
    finally:
        SAMPLERS.unregister("toy")
    assert [config["num_train_timesteps"] for config in configs] == [1000]
    with Image.open(tmp_path / "out" / "0000.png") as image:
        assert "Sampler: toy, " in image.info["parameters"]


def test_same_command_gives_the_same_images(tiny_model: Path, tmp_path: Path) -> None:
    options = ("-n", "2", "--sampler", "euler_a", "--negative", "pear", "--guidance", "3")
    assert generate(tiny_model, tmp_path / "a", *options, "--batch-size", "1") == 0
    assert generate(tiny_model, tmp_path / "b", *options, "--batch-size", "2") == 0
    for name in ("0000.png", "0001.png"):
        first, two = (np.asarray(Image.open(tmp_path / d / name)).astype(int) for d in "ab")
        assert abs(first - two).max() <= 1


def test_latents_are_written_instead_of_images(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, tmp_path / "a", "-n", "2", "--seed", "3") == 0
    capsys.readouterr()
    assert generate(tiny_model, tmp_path / "b", "-n", "2", "--seed", "3", "--latents") == 0
    file = tmp_path / "b" / "latents.safetensors"
    assert capsys.readouterr().out == f"latents of 2 images in {file}\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with safe_open(file, "pt") as opened:
        latents = opened.get_tensor("latents")
        jobs = json.loads(opened.metadata()["jobs"])
    assert jobs == [{"prompt": "a red apple", "seed": seed} for seed in (3, 4)]
    pipe = load_pipeline(tiny_model, device="cpu")
    for index, image in enumerate(tensor_to_pil(pipe.decode(latents))):
        drawn = Image.open(tmp_path / "a" / f"000{index}.png")
        assert abs(np.asarray(image).astype(int) - np.asarray(drawn).astype(int)).max() <= 1


def test_safety_checker_blackens_images(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    requested = []

    def load(folder: Path, device: torch.device) -> SafetyChecker:
        requested.append(folder)
        return lambda images: [True] * len(images)

    monkeypatch.setattr(safety, "load_safety_checker", load)
    checker = tmp_path / "checker"
    assert generate(tiny_model, tmp_path / "out", "-n", "1", "--safety-checker", str(checker)) == 0
    assert requested == [checker]
    assert "blackened" in capsys.readouterr().err
    assert not np.asarray(Image.open(tmp_path / "out" / "0000.png")).any()
    monkeypatch.undo()
    assert generate(tiny_model, tmp_path / "none", "--safety-checker", str(checker)) == 1
    assert "there is no config.json" in single_line(capsys.readouterr().err)
    assert generate(tiny_model, tmp_path / "none", "--latents", "--safety-checker", "x") == 1
    assert "--latents makes none" in single_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", ["generate", "train", "info"])
def test_download_option_fetches_the_model(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Only with the option; the stand-in has no network."""
    requested = []

    def download(name: str) -> None:
        requested.append(name)
        raise WeightsError(f"model {name}: cannot be downloaded: no route")

    monkeypatch.setattr(hub, "download_model", download)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "pictures").mkdir()
    downloads = {
        "generate": ["generate", "a", "--out", str(tmp_path / "out"), "-m"],
        "train": ["train", "--data", str(tmp_path / "pictures"), "--tag", "ink", "--out",
                  str(tmp_path / "ink"), "-m"],
        "info": ["model", "info"],
    }[command]  # fmt: skip
    assert run([*downloads, "some/model"]) == 1
    assert requested == []
    capsys.readouterr()
    assert run([*downloads, "some/model", "--download"]) == 1
    assert requested == ["some/model"]
    assert "cannot be downloaded: no route" in single_line(capsys.readouterr().err)
    assert run([*(downloads if command == "info" else downloads[:-1]), "--download"]) == 1
    assert "name one with --model" in single_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--steps", "-5"),
            "error: num_inference_steps: -5 is not possible; use a whole number, 1 to 1000",
        ),
        (("--size", "100x100"), "error: size: 100x100 is not in steps of 8 pixels; use 104x104"),
        (("--size", "big"), "error: size: 'big' is not WIDTHxHEIGHT; write it like 128x128"),
        (("--sampler", "ddmi"), "error: there is no sampler 'ddmi'; did you mean 'ddpm'?"),
        (
            ("--guidance", "-1"),
            "error: guidance_scale: -1.0 is not possible; use a number from 0 to 1000",
        ),
        (
            ("-n", "0"),
            "error: num_images_per_prompt: 0 is not possible; use a whole number, 1 to 100000",
        ),
        (("--seed", "-2"), "error: seed: -2 is not possible"),
        (("--clip-skip", "9"), "error: clip skip must be 1 to 2 for this model, not 9"),
        (("--guidance-rescale", "2"), "error: guidance_rescale: 2.0 is not possible"),
        (("--device", "abacus"), "error: device: 'abacus' is not a device"),
        (
            ("--negative", "<lora:x:1>"),
            "error: negative_prompt, column 1: '<lora:x:1' has no effect",
        ),
    ],
)
def test_invalid_option_is_a_one_line_error(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert generate(tiny_model, tmp_path / "out", *options) == 1
    assert single_line(capsys.readouterr().err).startswith(message)
    assert not list((tmp_path).glob("out/*"))


def test_wrong_usage_exits_with_status_two(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, tmp_path, "--steps", "many") == 2
    assert generate(tiny_model, tmp_path, "--stpes", "3") == 2
    assert generate(tiny_model, tmp_path, "--precision", "int8") == 2
    assert run(["generate"]) == 2


def test_unknown_model_is_refused_with_close_names(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model.parent / "modle", tmp_path / "out") == 1
    assert single_line(capsys.readouterr().err).endswith(
        "modle: no such folder; did you mean model?"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_component_is_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    shutil.rmtree(broken / part)
    assert generate(broken, tmp_path / "out") == 1
    message = single_line(capsys.readouterr().err)
    assert message.endswith(f"broken: missing part {part}; copy or download the whole folder again")


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
        ("unet", "config.json"),
        ("scheduler", "scheduler_config.json"),
    ],
)
def test_damaged_component_is_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, file: str
) -> None:
    (broken / part / file).write_bytes(b"\x10not what it was")
    assert generate(broken, tmp_path / "out") == 1
    assert f"{part} cannot be loaded" in single_line(capsys.readouterr().err)


def test_unwritable_folder_is_reported_before_the_model_loads(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    assert generate(Path("no-such-model"), tmp_path / "out") == 1
    assert "error: cannot write to folder" in single_line(capsys.readouterr().err)


def test_long_prompt_warns_and_generates(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--steps", "1", "-n", "1", "-m", str(tiny_model), "--out", str(tmp_path / "out")]
    assert run(["generate", "apple " * 80 + "zebra", *arguments]) == 0
    line = single_line(capsys.readouterr().err)
    assert line.startswith("warning: the prompt has ")
    assert "more than the 75 that the model reads at once" in line
    assert (tmp_path / "out" / "0000.png").is_file()


@pytest.mark.parametrize(
    ("mention", "message"),
    [
        ("<lora:nto:1>", "no nto.safetensors in {}; did you mean noto?"),
        ("<lora:../noto:1>", "a LoRA name is a plain file name"),
        ("<lora:noto:nan>", "weight nan is not between -10 and 10"),
        ("<lora:noto:1>", "noto.safetensors: not a readable safetensors file"),
    ],
)
def test_invalid_lora_is_a_one_line_error(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mention: str,
    message: str,
) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    (loras / "noto.safetensors").write_bytes(b"damaged")
    arguments = ["-m", str(tiny_model), "--lora-dir", str(loras), "--out", str(tmp_path / "out")]
    assert run(["generate", f"an apple {mention}", *arguments]) == 1
    assert message.format(loras) in single_line(capsys.readouterr().err)


@pytest.fixture
def loras(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA folder with a file and a run."""
    import torch

    from lorasmith.core.safetensors_io import save_tensors

    folder = tmp_path / "loras"
    name = "lora_unet_up_blocks_3_attentions_0_transformer_blocks_0_attn2_to_v"
    random = torch.Generator().manual_seed(0)
    for file in ("ink.safetensors", "ink/ink-best.safetensors"):
        factors = {
            f"{name}.lora_down.weight": torch.randn(2, 16, generator=random) * 9,
            f"{name}.lora_up.weight": torch.randn(8, 2, generator=random) * 9,
        }
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / file, factors, {})
    return folder


def test_lora_option_equals_a_mention(tiny_model: Path, tmp_path: Path, loras: Path) -> None:
    images = {
        "a": ("a red apple <lora:ink:0.5> <lora:ink-best:2>",),
        "b": ("a red apple", "--lora", "ink:0.5", "--lora", "ink-best:2"),
        "c": ("a red apple <lora:ink-best:2>", "--lora", f"{loras}/ink.safetensors:0.5"),
        "d": ("a red apple",),
    }
    shared = ("-m", str(tiny_model), "--lora-dir", str(loras), "--steps", "3", "-n", "1")
    for out, arguments in images.items():
        assert run(["generate", *arguments, *shared, "--out", str(tmp_path / out)]) == 0
    a, b, c, d = (np.asarray(Image.open(tmp_path / out / "0000.png")).astype(int) for out in images)
    assert abs(a - b).max() <= 1
    assert abs(a - c).max() <= 1
    assert abs(a - d).max() > 1
    with Image.open(tmp_path / "b" / "0000.png") as image:
        prompt = image.info["parameters"].splitlines()[0]
    assert prompt == "a red apple <lora:ink:0.5> <lora:ink-best:2>"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nto", "no nto.safetensors in {}; it has 2 LoRA files"),
        ("ink-bset:1", "did you mean ink-best"),
        ("ink:nan", "weight nan is not between -10 and 10"),
        ("ink:1e9", "weight 1e9 is not between -10 and 10"),
        ("ink:strong", "'strong' is not a number"),
        ("{}/nik.safetensors:1", "no such file; did you mean ink.safetensors?"),
        (":1", "has no name"),
    ],
)
def test_invalid_lora_option_is_a_one_line_error(
    option: str, message: str, tiny_model: Path, tmp_path: Path, loras: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = ("--lora", option.format(loras), "--lora-dir", str(loras))
    assert generate(tiny_model, tmp_path / "out", *more) == 1
    assert message.format(loras) in single_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_debug_option_shows_the_traceback(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, tmp_path / "out", "--steps", "-5", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_model_info_is_a_table(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "info", str(tiny_model), "--lora", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for words in (
        "down_blocks.0",
        "mid_block",
        "<- text at k, v",
        "<- time 32 after conv1",
        "cross-attention (attn2)",
        "predicts epsilon",
        "A LoRA of rank 4",
    ):
        assert words in captured.out, words


def test_model_info_is_json_on_request(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "info", str(tiny_model), "--lora", "4", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert parts["unet"]["parameters"] == sum(share["parameters"] for share in parts["shares"])
    assert parts["lora"]["rank"] == 4
    assert parts["lora"]["costs"][0]["reduction"] > 1
    assert run(["model", "info", str(tiny_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lora"] is None
    assert run(["model", "info", str(tiny_model), "--lora", "0"]) == 1
    assert "rank 0 is not possible" in single_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", [["generate"], ["model"], ["model", "info"]])
def test_help_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert command == ["model"] or "Example: " in text


def test_help_and_import_load_no_heavy_library() -> None:
    code = (
        "import sys, lorasmith, lorasmith.cli.generate, lorasmith.cli.model.commands;"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_options_of_other_programs_are_taken_or_answered(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--num_images_per_prompt", "1", "--dtype=float32", "--sampler", "k_euler_a"]
    command = ["generate", "a dog", "--pretrained_model_name_or_path", str(tiny_model)]
    command += ["--output_dir", str(tmp_path / "out"), "--num_inference_steps", "1", *options]
    assert run(command) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "0000.png").is_file()
    for option, answer in (
        ("--width", "--width: give --size WIDTHxHEIGHT"),
        ("--no_half_vae", "--no_half_vae: leave it out"),
        ("--scheduler", "--scheduler: it is part of the sampler's name"),
    ):
        capsys.readouterr()
        assert run(["generate", "a dog", option, "64"]) == 1
        assert answer in single_line(capsys.readouterr().err)
