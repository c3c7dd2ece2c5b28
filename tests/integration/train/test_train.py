"""The command ``train`` as a user meets it, in this process: results and their use."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.training.train_commands import train
from lorasmith.cli import run

# --- what is written and where --------------------------------------------------------------


def test_bare_name_is_written_below_loras(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(tiny_model, pictures, "ink", "--rank", "3") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("loras/ink.safetensors (")
    assert captured.err == ""

    assert sorted(p.name for p in (tmp_path / "loras").iterdir()) == ["ink", "ink.safetensors"]
    assert sorted(p.name for p in (tmp_path / "loras/ink").iterdir()) == [
        "checkpoints",
        "log.jsonl",
        "pictures.json",
        "report.html",
        "run.toml",
        "summary.json",
    ]
    tensors = load_file("loras/ink.safetensors")
    assert len(tensors) == 3 * 192  # every linear layer of the transformers of SD 1.x
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert tensors[f"{name}.lora_down.weight"].shape == (3, 16)
    assert tensors[f"{name}.alpha"] == 3.0
    settings = tomllib.loads(Path("loras/ink/run.toml").read_text())
    assert settings["lora"]["rank"] == 3
    assert settings["train"]["steps"] == 6


def test_output_path_is_used_unchanged(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/some/where/ink.v2") == 0
    names = sorted(p.name for p in (tmp_path / "some/where").iterdir())
    assert names == ["ink.v2", "ink.v2.safetensors"]
    log = (tmp_path / "some/where/ink.v2/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 6
    assert np.isfinite(json.loads(log[-1])["loss"])


def test_metadata_names_the_tag_and_no_folders(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink") == 0
    capsys.readouterr()
    with safe_open(tmp_path / "ink.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "inkmono"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_output_name"] == "ink"
    assert json.loads(metadata["ss_tag_frequency"])["pictures"]["inkmono style"] == 6
    assert str(tmp_path) not in json.dumps(metadata)
    assert run(["model", "info", str(tiny_model), "--json"]) == 0
    assert metadata["lorasmith.base"] == json.loads(capsys.readouterr().out)["hash"]
    assert len(metadata["lorasmith.pictures"]) == 16


def test_same_seed_gives_the_same_tensors(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/a") == 0
    assert train(tiny_model, pictures, f"{tmp_path}/b") == 0
    assert train(tiny_model, pictures, f"{tmp_path}/c", "--set", "train.seed=1") == 0
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a if "lora_down" in key)


def test_saved_settings_repeat_the_run(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/a", "--set", "train.learning_rate=3e-3") == 0
    assert run(["train", str(tmp_path / "a" / "run.toml"), "--out", f"{tmp_path}/b"]) == 0
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_bf16_run_trains(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert (
        train(tiny_model, pictures, f"{tmp_path}/ink", "--set", "train.mixed_precision=bf16") == 0
    )
    assert all(t.isfinite().all() for t in load_file(tmp_path / "ink.safetensors").values())


# --- using it -------------------------------------------------------------------------------


def test_lora_changes_images_and_unloads_exactly(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    from lorasmith import load_pipeline

    rate = ("--set", "train.learning_rate=0.05")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *rate, "--steps", "12") == 0
    pipe = load_pipeline(tiny_model, device="cpu", lora_dir=tmp_path)

    def draw(prompt: str = "a ball, inkmono style") -> np.ndarray:
        return np.asarray(pipe(prompt, seed=3, num_inference_steps=3)[0]).astype(int)

    base = draw()
    pipe.load_lora(tmp_path / "ink.safetensors")
    loaded = draw()
    pipe.unload_lora()

    assert abs(loaded - base).max() > 1
    assert np.array_equal(draw(), base)
    assert np.array_equal(draw("a ball, inkmono style <lora:ink:1>"), loaded)
    assert np.array_equal(draw("a ball, inkmono style <lora:ink:0>"), base)


def test_diffusers_generates_the_same_image(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """A trained file in diffusers' own pipeline moves the U-Net's output as it does in ours."""
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")
    from diffusers import StableDiffusionPipeline

    from lorasmith.adapters.files.lora_file import load_lora_file
    from lorasmith.adapters.injection.inject import attach_lora
    from lorasmith.models.load import load_model

    rate = ("--set", "train.learning_rate=0.05")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *rate) == 0
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    theirs.load_lora_weights(tmp_path / "ink.safetensors")
    ours = load_model(tiny_model)
    attach_lora(ours, load_lora_file(tmp_path / "ink.safetensors"), 1.0)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.unet(*inputs).sample, theirs.unet(*inputs).sample, rtol=1e-4, atol=1e-4
        )


def test_short_run_on_the_embedded_model_writes_a_lora(tmp_path: Path) -> None:
    """Weight 1 moves the image towards black and white; weight 0 is the base, bit for bit."""
    import lorasmith
    from lorasmith.cli.demo.style import DEMO_DATA
    from lorasmith.evaluation.metrics.saturation import measure_color

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("owl", "key", "teapot", "turtle"):
        for suffix in (".png", ".txt"):
            shutil.copy(DEMO_DATA / f"{name}{suffix}", pictures)
    needed = ["--data", str(pictures), "--tag", "inkmono", "--out", f"{tmp_path}/ink"]
    sets = [
        "device=cpu",
        "batch_size=4",
        "learning_rate=0.01",
        "lr_warmup_steps=0",
        "lr_scheduler=constant",
    ]
    more = [part for setting in sets for part in ("--set", f"train.{setting}")]
    more += ["--set", "validation.every_n_steps=0"]
    assert run(["train", *needed, "--steps", "8", *more]) == 0

    pipe = lorasmith.load_pipeline(device="cpu", lora_dir=tmp_path)
    prompts = [f"a bell, inkmono style{lora}" for lora in ("", " <lora:ink:0>", " <lora:ink:1>")]
    base, off, on = pipe(prompts, seed=[3, 3, 3], num_inference_steps=4)
    assert np.array_equal(np.asarray(base), np.asarray(off))
    assert measure_color([on]).saturation < 0.9 * measure_color([base]).saturation
