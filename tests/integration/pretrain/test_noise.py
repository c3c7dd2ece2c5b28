"""A noise schedule of one's own: pretrained with, stored, and used by everything after it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.training.pretrain_runs import PretrainRuns
from helpers.training.train_commands import sets, train
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.cli import run
from lorasmith.loops.tracking import read_log

NOISE = (
    "noise.num_train_timesteps=200",
    "noise.beta_schedule=linear",
    "noise.beta_start=0.001",
    "noise.beta_end=0.05",
    "noise.rescale_betas_zero_snr=true",
)
STORED = {
    "num_train_timesteps": 200, "beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.05,
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip


def read_scheduler(model: Path) -> dict[str, object]:
    return json.loads((model / "scheduler" / "scheduler_config.json").read_text())


def test_default_noise_is_that_of_stable_diffusion(pretrain_runs: PretrainRuns) -> None:
    stored = read_scheduler(pretrain_runs.unet)
    assert stored["beta_schedule"] == "scaled_linear"
    assert (stored["beta_start"], stored["beta_end"]) == (0.00085, 0.012)
    assert (stored["num_train_timesteps"], stored["steps_offset"]) == (1000, 1)
    assert (stored["prediction_type"], stored["rescale_betas_zero_snr"]) == ("epsilon", False)
    assert stored["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    "prediction", ["sample", pytest.param("v_prediction", marks=pytest.mark.slow)]
)
def test_noise_of_a_model_is_that_of_its_loras_and_pictures(
    pretrain_runs: PretrainRuns,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prediction: str,
) -> None:
    model = tmp_path / "model"
    chosen = (*NOISE, f"prediction_type={prediction}")
    assert pretrain_runs.pretrain("unet", model, *chosen) == 0
    stored = read_scheduler(model)
    assert stored.items() >= (STORED | {"prediction_type": prediction}).items()
    assert "gives the last noise level the weight 0" in " ".join(capsys.readouterr().err.split())
    assert run(["model", "info", str(model), "--json"]) == 0
    scheduler = json.loads(capsys.readouterr().out)["scheduler"]
    assert scheduler["prediction_type"] == prediction
    assert (scheduler["timesteps"], scheduler["zero_terminal_snr"]) == (200, True)

    monkeypatch.chdir(tmp_path)
    previews = sets("validation.every_n_steps=3", "validation.num_inference_steps=2",
                    "validation.num_images=1")  # fmt: skip
    assert train(model, pictures, "ink", *previews, "--resolution", "64") == 0
    (file,) = tmp_path.glob("**/ink.safetensors")
    expected = {"v_prediction": "v", "sample": "sample"}[prediction]
    assert load_lora_file(file).metadata["modelspec.prediction_type"] == expected
    log = next(tmp_path.glob("**/ink*/log.jsonl"))
    losses = [line["loss"] for line in read_log(log) if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()

    for name in ("ddim", "dpmpp_2m_karras", "euler_a", "heun"):
        out = tmp_path / name
        arguments = ["-m", str(model), "--lora", str(file), "--sampler", name, "--steps", "3"]
        status = run(["generate", "inkmono", *arguments, "-n", "1", "--out", str(out)])
        assert status == (name == "heun")
        if status == 0:
            assert np.asarray(Image.open(out / "0000.png")).std() > 0


def test_start_from_a_model_with_other_noise_warns(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--from", str(pretrain_runs.unet))
    capsys.readouterr()
    assert pretrain_runs.pretrain("unet", tmp_path / "same", options=start) == 0
    assert "was trained with" not in capsys.readouterr().err
    changes = ("prediction_type=sample", "noise.beta_end=0.02")
    assert pretrain_runs.pretrain("unet", tmp_path / "other", *changes, options=start) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "beta_end 0.012 (this run: 0.02), prediction_type epsilon (this run: sample)" in message
