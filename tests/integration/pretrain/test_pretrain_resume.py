"""Pretraining that is stopped and resumed, starts from weights, or is divided into parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from helpers.training.pretrain_runs import (
    KINDS,
    UNET_FILE,
    VAE_FILE,
    Place,
    assert_same,
    final_state,
    last_error,
    several_runs,
)
from helpers.two_processes import in_two_processes
from lorasmith.loops.tracking import read_log


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_run_resumes_exactly(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    soon = "train.stop_after_minutes=1e-9"  # stops after one step
    out, straight, options = tmp_path / "out", place.root / kind, ("--resume",)
    assert place.pretrain(kind, out, soon) == 130
    assert "stopped after step 1 of 4; --resume goes on" in capsys.readouterr().err
    assert place.pretrain(kind, out, soon, options=options) == 130
    assert place.pretrain(kind, out, options=options) == 0
    assert_same(final_state(out), final_state(straight))
    files = [path.relative_to(straight) for path in straight.glob("*/*.safetensors")]
    assert files
    for file in files:
        assert_same(load_file(straight / file), load_file(out / file))
    logs = [read_log(folder / "log.jsonl") for folder in (straight, out)]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_run_starts_from_existing_weights(place: Place, tmp_path: Path, kind: str) -> None:
    files = {"clip": "image_tower/model.safetensors", "vae": VAE_FILE, "unet": UNET_FILE}
    still = ("train.learning_rate=1e-30", "loss.discriminator_learning_rate=1e-30")
    start = ("--from", str(place.root / kind))
    sets = still if kind == "vae" else still[:1]
    assert place.pretrain(kind, tmp_path / "out", *sets, options=start) == 0
    file = files[kind]
    assert_same(load_file(tmp_path / "out" / file), load_file(place.root / kind / file))


def test_initial_weights_set_the_architecture(place: Place, tmp_path: Path) -> None:
    sets = ("architecture.block_out_channels=[4, 8]", "architecture.latent_channels=3")
    start = ("--from", str(place.vae))
    assert place.pretrain("vae", tmp_path / "out", *sets, options=start) == 0
    one, two = load_file(tmp_path / "out" / VAE_FILE), load_file(place.vae / VAE_FILE)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def test_clip_run_that_starts_from_weights_keeps_their_tokenizer(
    place: Place, tmp_path: Path
) -> None:
    start = ("--from", str(place.clip))
    assert place.pretrain("clip", tmp_path / "out", "num_merges=200", options=start) == 0
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")) == 300 + 514


def test_existing_run_is_not_overwritten(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.clip / "run.toml").read_bytes()
    assert place.pretrain("clip", place.clip, "train.steps=9") == 1
    assert "already holds a run; continue it with --resume" in last_error(capsys)
    assert (place.clip / "run.toml").read_bytes() == before


# --- dividing a batch -----------------------------------------------------------------------


def assert_close(one: Path, two: Path) -> None:
    """Weights and figures agree far better than the distance that weights moved, 1e-3 a step.

    A few weights may not: Adam makes a whole step of the rounding error of a gradient that is zero
    in truth, as that of a bias before a normalisation.
    """
    states = [{k: v for k, v in final_state(out).items() if "/module/" in k} for out in (one, two)]
    assert states[0].keys() == states[1].keys()
    far = [(states[0][k] - states[1][k]).abs().flatten() > 5e-5 for k in states[0]]
    assert float(torch.cat(far).float().mean()) < 0.01
    logs = [read_log(out / "log.jsonl") for out in (one, two)]
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time", "images_per_s"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), name


def test_gradient_accumulation_equals_a_single_batch(place: Place, tmp_path: Path) -> None:
    sets = ("train.batch_size=4", "train.gradient_accumulation_steps=2")
    assert place.pretrain("unet", tmp_path / "parts", *sets) == 0
    assert_close(place.unet, tmp_path / "parts")


# The discriminator's weight depends on the norms of gradients of a part of a batch.
DIVISIBLE = {
    "clip": (),
    "vae": ("loss.adversarial_weight=0",),
    "unet": ("train_text_encoder=true",),
}


@pytest.mark.slow
def test_two_processes_equal_a_single_process(place: Place, tmp_path: Path) -> None:
    codes = in_two_processes(several_runs, place, tmp_path / "two", DIVISIBLE, "train.batch_size=4")
    assert codes == [0, 0]
    for kind in KINDS:
        assert place.pretrain(kind, tmp_path / "one" / kind, *DIVISIBLE[kind]) == 0
        assert_close(tmp_path / "one" / kind, tmp_path / "two" / kind)
