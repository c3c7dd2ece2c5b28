"""Pretraining that is stopped and resumed, starts from weights, or is divided into parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from helpers.tensors import assert_same
from helpers.training.pretrain_runs import (
    KINDS,
    UNET_FILE,
    VAE_FILE,
    PretrainRuns,
    final_state,
    last_error,
    several_runs,
)
from helpers.two_processes import in_two_processes
from lorasmith.loops.tracking import read_log


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_run_resumes_exactly(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    soon = "train.stop_after_minutes=1e-9"  # stops after one step
    out, straight, options = tmp_path / "out", pretrain_runs.root / kind, ("--resume",)
    assert pretrain_runs.pretrain(kind, out, soon) == 130
    assert "stopped after step 1 of 4; --resume goes on" in capsys.readouterr().err
    assert pretrain_runs.pretrain(kind, out, soon, options=options) == 130
    assert pretrain_runs.pretrain(kind, out, options=options) == 0
    assert_same(final_state(out), final_state(straight))
    files = [path.relative_to(straight) for path in straight.glob("*/*.safetensors")]
    assert files
    for file in files:
        assert_same(load_file(straight / file), load_file(out / file))
    logs = [read_log(folder / "log.jsonl") for folder in (straight, out)]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_run_starts_from_existing_weights(
    pretrain_runs: PretrainRuns, tmp_path: Path, kind: str
) -> None:
    files = {"clip": "image_tower/model.safetensors", "vae": VAE_FILE, "unet": UNET_FILE}
    still = ("train.learning_rate=1e-30", "loss.discriminator_learning_rate=1e-30")
    start = ("--from", str(pretrain_runs.root / kind))
    sets = still if kind == "vae" else still[:1]
    assert pretrain_runs.pretrain(kind, tmp_path / "out", *sets, options=start) == 0
    file = files[kind]
    assert_same(load_file(tmp_path / "out" / file), load_file(pretrain_runs.root / kind / file))


def test_initial_weights_set_the_architecture(pretrain_runs: PretrainRuns, tmp_path: Path) -> None:
    sets = ("architecture.block_out_channels=[4, 8]", "architecture.latent_channels=3")
    start = ("--from", str(pretrain_runs.vae))
    assert pretrain_runs.pretrain("vae", tmp_path / "out", *sets, options=start) == 0
    actual, expected = (
        load_file(tmp_path / "out" / VAE_FILE),
        load_file(pretrain_runs.vae / VAE_FILE),
    )
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}


def test_clip_run_that_starts_from_weights_keeps_their_tokenizer(
    pretrain_runs: PretrainRuns, tmp_path: Path
) -> None:
    start = ("--from", str(pretrain_runs.clip))
    assert pretrain_runs.pretrain("clip", tmp_path / "out", "num_merges=200", options=start) == 0
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")) == 300 + 514


def test_existing_run_is_not_overwritten(
    pretrain_runs: PretrainRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (pretrain_runs.clip / "run.toml").read_bytes()
    assert pretrain_runs.pretrain("clip", pretrain_runs.clip, "train.steps=9") == 1
    assert "already holds a run; continue it with --resume" in last_error(capsys)
    assert (pretrain_runs.clip / "run.toml").read_bytes() == before


# --- dividing a batch -----------------------------------------------------------------------


def assert_close(first: Path, second: Path) -> None:
    """Weights and figures agree far better than the distance that weights moved, 1e-3 a step.

    A few weights may not: Adam makes a whole step of the rounding error of a gradient that is zero
    in truth, as that of a bias before a normalisation.
    """
    states = [
        {k: v for k, v in final_state(out).items() if "/module/" in k} for out in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    differences = [(states[0][k] - states[1][k]).abs().flatten() > 5e-5 for k in states[0]]
    assert float(torch.cat(differences).float().mean()) < 0.01
    logs = [read_log(out / "log.jsonl") for out in (first, second)]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time", "images_per_s"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name


def test_gradient_accumulation_equals_a_single_batch(
    pretrain_runs: PretrainRuns, tmp_path: Path
) -> None:
    sets = ("train.batch_size=4", "train.gradient_accumulation_steps=2")
    assert pretrain_runs.pretrain("unet", tmp_path / "parts", *sets) == 0
    assert_close(pretrain_runs.unet, tmp_path / "parts")


# The discriminator's weight depends on the norms of gradients of a part of a batch.
DIVISIBLE = {
    "clip": (),
    "vae": ("loss.adversarial_weight=0",),
    "unet": ("train_text_encoder=true",),
}


@pytest.mark.slow
def test_two_processes_equal_a_single_process(pretrain_runs: PretrainRuns, tmp_path: Path) -> None:
    codes = in_two_processes(
        several_runs, pretrain_runs, tmp_path / "two", DIVISIBLE, "train.batch_size=4"
    )
    assert codes == [0, 0]
    for kind in KINDS:
        assert pretrain_runs.pretrain(kind, tmp_path / "one" / kind, *DIVISIBLE[kind]) == 0
        assert_close(tmp_path / "one" / kind, tmp_path / "two" / kind)
