"""The commands ``pretrain vae``, ``clip`` and ``unet`` as a user meets them, in this process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, VQModel
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import lorasmith
from helpers.backbones import vit, write_weights
from helpers.manifests import read_manifest
from helpers.tensors import assert_same
from helpers.training.pretrain_runs import (
    KINDS,
    UNET_FILE,
    VAE_FILE,
    PretrainRuns,
    final_state,
    last_error,
    moved,
)
from lorasmith.cli import run
from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import hash_row
from lorasmith.loops.tracking import read_log
from lorasmith.models.image_encoder import load_clip
from lorasmith.models.suppress_logs import suppress_logs

# --- what is written ------------------------------------------------------------------------


def test_clip_writes_two_encoders_and_a_tokenizer(pretrain_runs: PretrainRuns) -> None:
    names = {path.name for path in pretrain_runs.clip.iterdir()}
    assert names == {
        "text_encoder", "tokenizer", "image_tower", "checkpoints", "log.jsonl", "run.toml",
        "manifest.tsv",
    }  # fmt: skip
    pair = load_clip(pretrain_runs.clip)
    assert pair.image.config == {
        "kind": "conv", "channels": [8, 16], "blocks": [1, 1], "embedding": 8,
    }  # fmt: skip
    assert pair.text_encoder.config.hidden_size == 16
    assert len(CLIPTokenizer.from_pretrained(pretrain_runs.clip / "tokenizer")) == 300 + 514


VIT = (
    "image_encoder={kind='vit', patch_size=8, hidden_size=16, num_hidden_layers=2,"
    " num_attention_heads=2, intermediate_size=32}"
)


def test_clip_with_a_vit_is_the_perceptual_encoder_of_a_vae(
    pretrain_runs: PretrainRuns, tmp_path: Path
) -> None:
    clip, vae = tmp_path / "clip", tmp_path / "vae"
    assert pretrain_runs.pretrain("clip", clip, VIT) == 0
    assert json.loads((clip / "image_tower" / "config.json").read_text())["kind"] == "vit"
    assert load_clip(clip).image.config["image_size"] == 32
    more = tmp_path / "more"
    assert pretrain_runs.pretrain("clip", more, VIT, options=("--from", str(clip))) == 0
    assert moved(
        load_file(clip / "image_tower" / "model.safetensors"),
        load_file(more / "image_tower" / "model.safetensors"),
    )
    assert pretrain_runs.pretrain("vae", vae, f"loss.perceptual_encoder={clip}") == 0
    assert all(line["perceptual"] > 0 for line in read_log(vae / "log.jsonl"))


def test_vae_is_trained_with_a_backbone_of_a_file(
    pretrain_runs: PretrainRuns, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "vit.safetensors", vit(width=64))
    sets = (f"loss.perceptual_encoder={weights}", "loss.perceptual_layer_weights={'blocks.1'=2.0}")
    assert pretrain_runs.pretrain("vae", tmp_path / "vae", *sets) == 0
    assert all(line["perceptual"] > 0 for line in read_log(tmp_path / "vae" / "log.jsonl"))


def test_vae_writes_an_autoencoder_with_the_scale_of_its_latents(
    pretrain_runs: PretrainRuns,
) -> None:
    vae = AutoencoderKL.from_pretrained(pretrain_runs.vae / "vae")
    assert tuple(vae.config.block_out_channels) == (8, 8, 8, 8)
    keys = read_manifest(pretrain_runs.vae / "manifest.tsv")
    rows = [row for row in read_rows(pretrain_runs.data) if row.key in keys]
    with torch.no_grad():
        latents = vae.encode(uint8_to_signed(load_square_images(rows, 32))).latent_dist.mean
    assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1.0, abs=0.01)
    plain = load_file(pretrain_runs.vae / VAE_FILE.replace("vae/", "vae_without_ema/"))
    assert moved(plain, load_file(pretrain_runs.vae / VAE_FILE))


def test_unet_writes_a_full_model(pretrain_runs: PretrainRuns) -> None:
    averaged = load_file(pretrain_runs.unet / UNET_FILE)
    plain = load_file(pretrain_runs.unet / UNET_FILE.replace("unet/", "unet_without_ema/"))
    assert len(moved(plain, averaged)) > len(plain) / 2
    state = final_state(pretrain_runs.unet)
    for name, value in plain.items():
        assert torch.equal(value, state[f"unet/module/{name}"])
        assert torch.equal(averaged[name], state[f"unet/ema/{name}"])
    encoder = "text_encoder/model.safetensors"
    assert_same(load_file(pretrain_runs.unet / encoder), load_file(pretrain_runs.clip / encoder))
    assert_same(load_file(pretrain_runs.unet / VAE_FILE), load_file(pretrain_runs.vae / VAE_FILE))
    assert list((pretrain_runs.unet / "tensorboard").iterdir())


def test_model_draws_with_lorasmith_and_with_diffusers_alone(pretrain_runs: PretrainRuns) -> None:
    pipe = lorasmith.load_pipeline(pretrain_runs.unet, device="cpu")
    assert pipe.model.default_size == 128
    (image,) = pipe("a red circle", seed=3, num_inference_steps=2, guidance_scale=4.0)
    with suppress_logs():
        other = StableDiffusionPipeline.from_pretrained(pretrain_runs.unet, safety_checker=None)
        other.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        drawn = other("a red circle", latents=latents, num_inference_steps=2, guidance_scale=4.0)
    assert image.size == drawn.images[0].size == (128, 128)
    assert (
        np.abs(np.asarray(image).astype(int) - np.asarray(drawn.images[0]).astype(int)).max() <= 1
    )
    assert np.asarray(image).std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_log_has_every_figure(pretrain_runs: PretrainRuns, kind: str) -> None:
    records = read_log(pretrain_runs.root / kind / "log.jsonl")
    assert [record["step"] for record in records] == [2, 4]
    extra = {
        "clip": {"accuracy", "grad_norm/pair"},
        "vae": {"psnr", "perceptual", "adversarial", "discriminator", "grad_norm/discriminator"},
        "unet": {"grad_norm/unet"},
    }[kind]
    assert records[-1].keys() >= {"loss", "lr", "images_per_s", *extra}
    assert all(np.isfinite(list(record.values())).all() for record in records)


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_lists_training_rows_alone(pretrain_runs: PretrainRuns, kind: str) -> None:
    rows = {row.key: row for row in read_rows(pretrain_runs.data)}
    manifest = read_manifest(pretrain_runs.root / kind / "manifest.tsv")
    assert 15 <= len(manifest) <= 20
    for key, digest in manifest.items():
        assert rows[key].columns["role"] == "base"
        assert digest == hash_row(rows[key])


def test_saved_settings_repeat_the_run(pretrain_runs: PretrainRuns, tmp_path: Path) -> None:
    arguments = ["--set", f"train.output_dir={tmp_path / 'again'}"]
    assert run(["pretrain", "clip", str(pretrain_runs.clip / "run.toml"), *arguments]) == 0
    assert_same(final_state(tmp_path / "again"), final_state(pretrain_runs.clip))


# --- choices --------------------------------------------------------------------------------


def test_vq_is_an_alternative_to_kl(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("loss.regularizer=vq", "loss.codebook_size=32", "loss.adversarial_weight=0")
    assert pretrain_runs.pretrain("vae", tmp_path / "vq", *sets) == 0
    vae = VQModel.from_pretrained(tmp_path / "vq" / "vae")
    assert vae.config.num_vq_embeddings == 32
    state = final_state(tmp_path / "vq")
    assert state["coder/optimizer/0/exp_avg"].abs().sum() > 0
    assert not any(name.startswith("discriminator") for name in state)
    capsys.readouterr()
    assert pretrain_runs.pretrain("unet", tmp_path / "unet", f"vae={tmp_path / 'vq'}") == 1
    assert "VQModel" in last_error(capsys)
    assert pretrain_runs.pretrain("vae", tmp_path / "x", *sets, "loss.trainable_part=decoder") == 1
    assert "decoder works with regularizer kl only" in last_error(capsys)


def test_decoder_only_keeps_the_encoder(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("loss.trainable_part=decoder", "train.weight_decay=0.1")
    start = ("--from", str(pretrain_runs.vae))
    assert pretrain_runs.pretrain("vae", tmp_path / "out", *sets, options=start) == 0
    before, after = load_file(pretrain_runs.vae / VAE_FILE), load_file(tmp_path / "out" / VAE_FILE)
    changed = moved(before, after)
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    configs = [
        json.loads((d / "vae/config.json").read_text())
        for d in (pretrain_runs.vae, tmp_path / "out")
    ]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]
    capsys.readouterr()
    assert pretrain_runs.pretrain("vae", tmp_path / "new", *sets) == 1
    assert "name them with train.start_from or --from" in last_error(capsys)


def test_unet_run_trains_the_text_encoder_and_predicts_v(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (
        "train_text_encoder=true",
        "prediction_type=v_prediction",
        "min_snr_gamma=0",
        "train.ema_decay=0",
    )
    assert pretrain_runs.pretrain("unet", tmp_path / "out", *sets) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"saved to {tmp_path / 'out'}\n", "")
    encoder = "text_encoder/model.safetensors"
    before, after = load_file(pretrain_runs.clip / encoder), load_file(tmp_path / "out" / encoder)
    assert len(moved(before, after)) > len(before) / 2
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert not (tmp_path / "out" / "unet_without_ema").exists()
    assert lorasmith.load_pipeline(tmp_path / "out", device="cpu")("x", num_inference_steps=1)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_learns_in_full_precision_weights(
    pretrain_runs: PretrainRuns, tmp_path: Path, kind: str
) -> None:
    assert pretrain_runs.pretrain(kind, tmp_path / "half", "train.mixed_precision=bf16") == 0
    half, full = final_state(tmp_path / "half"), final_state(pretrain_runs.root / kind)
    assert {value.dtype for value in half.values()} == {value.dtype for value in full.values()}
    assert moved(half, full)
    for name in half:
        if "/module/" in name:
            torch.testing.assert_close(half[name], full[name], atol=8e-3, rtol=0.0)
