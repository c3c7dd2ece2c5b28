"""The commands ``pretrain vae``, ``clip`` and ``unet`` as a user meets them, in this process."""

import json
import os
import socket
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, VQModel
from pretraining import Place, assert_same, final_state, make_data, moved
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import lorasmith
from lorasmith.data.rows import read_rows, row_hash
from lorasmith.loops.track import read_log
from lorasmith.models.load import quiet
from lorasmith.models.tower import load_pair
from lorasmith.pretraining import clip as clip_module
from lorasmith.pretraining.common import read_manifest

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
KINDS = ("clip", "vae", "unet")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Data and one run of each kind, each built on the one before."""
    place = Place(tmp_path_factory.mktemp("pretrain"))
    make_data(place.data)
    assert place.pretrain("clip", place.clip) == 0
    assert place.pretrain("vae", place.vae, "loop.ema=0.9") == 0
    assert place.pretrain("unet", place.unet, "loop.ema=0.9", "loop.tensorboard=true") == 0
    return place


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# --- what is written ------------------------------------------------------------------------


def test_clip_writes_two_towers_and_a_tokenizer(place: Place) -> None:
    names = {path.name for path in place.clip.iterdir()}
    assert names == {
        "text_encoder", "tokenizer", "image_tower", "checkpoints", "log.jsonl", "run.toml",
        "manifest.tsv",
    }  # fmt: skip
    pair = load_pair(place.clip)
    assert pair.image.config == {"channels": [8, 16], "blocks": [1, 1], "embedding": 8}
    assert pair.text_encoder.config.hidden_size == 16
    assert len(CLIPTokenizer.from_pretrained(place.clip / "tokenizer")) == 300 + 514


def test_vae_writes_an_autoencoder_with_the_scale_of_its_latents(place: Place) -> None:
    vae = AutoencoderKL.from_pretrained(place.vae / "vae")
    assert tuple(vae.config.block_out_channels) == (8, 8, 8, 8)
    rows = [place.data / row.key for row in read_rows(place.data)]
    keys = read_manifest(place.vae / "manifest.tsv")
    pictures = []
    with torch.no_grad():
        for path in rows:
            if path.name in keys:
                from lorasmith.data.picture import decode, square

                pixels = square(decode(path.read_bytes(), path.name), 32)
                pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1)
        latents = vae.encode(torch.stack(pictures)).latent_dist.mean
    assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1.0, abs=0.01)
    plain = load_file(place.vae / VAE_FILE.replace("vae/", "vae_without_ema/"))
    assert moved(plain, load_file(place.vae / VAE_FILE))


def test_unet_writes_a_whole_model(place: Place) -> None:
    averaged = load_file(place.unet / UNET_FILE)
    plain = load_file(place.unet / UNET_FILE.replace("unet/", "unet_without_ema/"))
    assert len(moved(plain, averaged)) > len(plain) / 2
    state = final_state(place.unet)
    for name, value in plain.items():
        assert torch.equal(value, state[f"unet/module/{name}"])
        assert torch.equal(averaged[name], state[f"unet/ema/{name}"])
    encoder = "text_encoder/model.safetensors"
    assert_same(load_file(place.unet / encoder), load_file(place.clip / encoder))
    assert_same(load_file(place.unet / VAE_FILE), load_file(place.vae / VAE_FILE))
    assert list((place.unet / "tensorboard").iterdir())


def test_the_model_draws_with_lorasmith_and_with_diffusers_alone(place: Place) -> None:
    pipe = lorasmith.load_pipeline(place.unet, device="cpu")
    assert pipe.model.default_size == 128
    (own,) = pipe("a red circle", seed=3, steps=2, guidance=4.0)
    with quiet():
        other = StableDiffusionPipeline.from_pretrained(place.unet, safety_checker=None)
        other.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        drawn = other("a red circle", latents=latents, num_inference_steps=2, guidance_scale=4.0)
    assert own.size == drawn.images[0].size == (128, 128)
    assert np.abs(np.asarray(own).astype(int) - np.asarray(drawn.images[0]).astype(int)).max() <= 1
    assert np.asarray(own).std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_has_every_figure(place: Place, kind: str) -> None:
    records = read_log(place.root / kind / "log.jsonl")
    assert [record["step"] for record in records] == [2, 4]
    extra = {
        "clip": {"accuracy", "grad_norm/pair"},
        "vae": {"psnr", "perceptual", "adversarial", "discriminator", "grad_norm/discriminator"},
        "unet": {"grad_norm/unet"},
    }[kind]
    assert records[-1].keys() >= {"loss", "lr", "images_per_s", *extra}
    assert all(np.isfinite(list(record.values())).all() for record in records)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_lists_training_rows_alone(place: Place, kind: str) -> None:
    rows = {row.key: row for row in read_rows(place.data)}
    manifest = read_manifest(place.root / kind / "manifest.tsv")
    assert 15 <= len(manifest) <= 20
    for key, digest in manifest.items():
        assert rows[key].columns["role"] == "base"
        assert digest == row_hash(rows[key])


def test_the_saved_settings_repeat_the_run(place: Place, tmp_path: Path) -> None:
    from lorasmith.cli import run

    again = ["--set", f"loop.out={tmp_path / 'again'}"]
    assert run(["pretrain", "clip", str(place.clip / "run.toml"), *again]) == 0
    assert_same(final_state(tmp_path / "again"), final_state(place.clip))


# --- choices --------------------------------------------------------------------------------


def test_vq_is_an_alternative_to_kl(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("loss.regularizer=vq", "loss.codebook=32", "loss.adversarial=0")
    assert place.pretrain("vae", tmp_path / "vq", *sets) == 0
    vae = VQModel.from_pretrained(tmp_path / "vq" / "vae")
    assert vae.config.num_vq_embeddings == 32
    state = final_state(tmp_path / "vq")
    assert state["coder/optimizer/0/exp_avg"].abs().sum() > 0
    assert not any(name.startswith("discriminator") for name in state)
    capsys.readouterr()
    assert place.pretrain("unet", tmp_path / "unet", f"vae={tmp_path / 'vq'}") == 1
    assert "VQModel" in error_of(capsys)
    assert place.pretrain("vae", tmp_path / "x", *sets, "loss.train=decoder") == 1
    assert "decoder works with regularizer kl only" in error_of(capsys)


def test_decoder_only_keeps_the_encoder(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("loss.train=decoder", "loop.ema=0.9", "loop.weight_decay=0.1")
    start = ("--from", str(place.vae))
    assert place.pretrain("vae", tmp_path / "out", *sets, options=start) == 0
    before, after = load_file(place.vae / VAE_FILE), load_file(tmp_path / "out" / VAE_FILE)
    changed = moved(before, after)
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    configs = [
        json.loads((d / "vae/config.json").read_text()) for d in (place.vae, tmp_path / "out")
    ]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]
    capsys.readouterr()
    assert place.pretrain("vae", tmp_path / "new", *sets) == 1
    assert "name them with loop.start_from or --from" in error_of(capsys)


def test_the_text_encoder_may_learn_too_and_v_be_predicted(place: Place, tmp_path: Path) -> None:
    sets = ("train_text_encoder=true", "prediction=v_prediction", "min_snr=0")
    assert place.pretrain("unet", tmp_path / "out", *sets) == 0
    encoder = "text_encoder/model.safetensors"
    before, after = load_file(place.clip / encoder), load_file(tmp_path / "out" / encoder)
    assert len(moved(before, after)) > len(before) / 2
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert not (tmp_path / "out" / "unet_without_ema").exists()
    assert lorasmith.load_pipeline(tmp_path / "out", device="cpu")("x", steps=1)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_learns_in_full_precision_weights(place: Place, tmp_path: Path, kind: str) -> None:
    assert place.pretrain(kind, tmp_path / "half", "loop.precision=bf16") == 0
    assert place.pretrain(kind, tmp_path / "full") == 0
    half, full = final_state(tmp_path / "half"), final_state(tmp_path / "full")
    assert {value.dtype for value in half.values()} == {value.dtype for value in full.values()}
    assert moved(half, full)
    for name in half:
        if "/module/" in name:
            torch.testing.assert_close(half[name], full[name], atol=8e-3, rtol=0.0)


# --- going on -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_exactly(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    soon = "loop.stop_after_minutes=1e-9"  # stops after one step
    assert place.pretrain(kind, tmp_path / "two", "loop.ema=0.9", soon) == 130
    assert "stopped after step 1 of 4; --resume goes on" in capsys.readouterr().err
    options = ("--resume",)
    assert place.pretrain(kind, tmp_path / "two", "loop.ema=0.9", soon, options=options) == 130
    assert place.pretrain(kind, tmp_path / "two", "loop.ema=0.9", options=options) == 0
    assert place.pretrain(kind, tmp_path / "one", "loop.ema=0.9") == 0
    assert_same(final_state(tmp_path / "two"), final_state(tmp_path / "one"))
    files = [path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/*/*.safetensors")]
    assert files
    for file in files:
        assert_same(load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file))
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_start_from_existing_weights(place: Place, tmp_path: Path, kind: str) -> None:
    files = {"clip": "image_tower/model.safetensors", "vae": VAE_FILE, "unet": UNET_FILE}
    still = ("loop.learning_rate=1e-30", "loss.discriminator_learning_rate=1e-30")
    start = ("--from", str(place.root / kind))
    sets = still if kind == "vae" else still[:1]
    assert place.pretrain(kind, tmp_path / "out", *sets, options=start) == 0
    file = files[kind]
    assert_same(load_file(tmp_path / "out" / file), load_file(place.root / kind / file))


def test_weights_to_start_from_bring_their_own_shape(place: Place, tmp_path: Path) -> None:
    sets = ("shape.channels=[4, 8]", "shape.latent_channels=3")
    start = ("--from", str(place.vae))
    assert place.pretrain("vae", tmp_path / "out", *sets, options=start) == 0
    one, two = load_file(tmp_path / "out" / VAE_FILE), load_file(place.vae / VAE_FILE)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def test_a_clip_run_that_starts_from_weights_keeps_their_tokenizer(
    place: Place, tmp_path: Path
) -> None:
    start = ("--from", str(place.clip))
    assert place.pretrain("clip", tmp_path / "out", "merge_count=200", options=start) == 0
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")) == 300 + 514


def test_a_run_is_not_trained_over(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.clip / "run.toml").read_bytes()
    assert place.pretrain("clip", place.clip, "loop.steps=9") == 1
    assert "already holds a run; continue it with --resume" in error_of(capsys)
    assert (place.clip / "run.toml").read_bytes() == before


# --- dividing a batch -----------------------------------------------------------------------


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Weights agree far better than the distance that they moved (1e-3 a step)."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        if "/module/" in name:
            torch.testing.assert_close(value, two[name], atol=5e-5, rtol=1e-4, msg=name)


def test_accumulated_parts_equal_one_batch(place: Place, tmp_path: Path) -> None:
    assert place.pretrain("unet", tmp_path / "whole") == 0
    assert place.pretrain("unet", tmp_path / "parts", "loop.accumulate=2") == 0
    assert_close(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def _process_of_two(rank: int, port: int, place: Place, out: Path) -> None:
    # One thread: OpenMP's threads of the parent do not exist in a forked process.
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    codes = [place.pretrain(kind, out / kind, *PLAIN[kind]) for kind in KINDS]
    os._exit(max(codes))  # without the parent's exit handlers


# The discriminator's weight depends on the norms of gradients of a part of a batch.
PLAIN = {"clip": (), "vae": ("loss.adversarial=0",), "unet": ("train_text_encoder=true",)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_equal_one(place: Place, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    workers = [
        context.Process(target=_process_of_two, args=(rank, port, place, tmp_path / "two"))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for kind in KINDS:
        assert place.pretrain(kind, tmp_path / "one" / kind, *PLAIN[kind]) == 0
        assert_close(final_state(tmp_path / "one" / kind), final_state(tmp_path / "two" / kind))
        one, two = (read_log(tmp_path / n / kind / "log.jsonl") for n in ("one", "two"))
        assert [r["step"] for r in two] == [r["step"] for r in one]


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sets", "message"),
    [
        ("vae", ("loop.setps=3",), "unknown key 'setps' in section [loop]; did you mean steps"),
        ("vae", ("losss.kl=1",), "unknown key 'losss' in the top level; did you mean loss"),
        ("unet", ("shape.head=3",), "unknown key 'head' in section [shape]; did you mean heads"),
        ("unet", ("stages.0=3",), "stages"),
        ("clip", ("loop.steps=0",), "loop.steps: input should be greater than 0 (got 0)"),
        ("unet", ("loop.steps=5",), "loop.steps is 5 but the stages' steps add up to 4"),
        ("clip", ("loop.batch_size=9", "loop.accumulate=2"), "9 does not divide into 1 processes"),
        ("clip", ("loop.precision=fp16",), "loop.precision: fp16 needs a GPU"),
        ("clip", ("image.channels=[8, 12]",), "image: channels: 12 does not divide into 8 groups"),
        ("clip", ("image.blocks=[1]",), "channels has 2 stages but blocks has 1"),
        ("clip", ("text.heads=3",), "text: width 16 does not divide into 3 heads"),
        ("vae", ("shape.groups=3",), "shape: channels: 8 does not divide into 3 groups"),
        ("vae", ("resolution=36",), "resolution: 36 is not a multiple of 8"),
        ("unet", ("data.filters=[{column='rol', value=1}]",), "no row has a column 'rol'; did you"),
        ("unet", ("clip=/absent",), "text_encoder cannot be loaded"),
        ("unet", ("vae=/absent",), "vae cannot be loaded"),
        ("vae", ("loss.perceptual_tower=/absent",), "/absent: has no image_tower"),
        ("clip", ("merges=/absent",), "/absent: cannot be read as a merge list"),
        ("clip", ("merge_count=999999",), "fewer than the 999999 asked for"),
        ("clip", ("data.path=/absent",), "/absent: no such data folder or packed file"),
    ],
)
def test_a_mistake_is_one_line(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    kind: str, sets: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert place.pretrain(kind, tmp_path / "out", *sets) == 1
    assert message in error_of(capsys)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_stage_with_an_odd_size_is_named(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, message in (
        ("resolution=60, steps=4", "stages.0.resolution: 60 is not a multiple of 8"),
        ("resolution=64, steps=4, batch_size=3", "stages.0.batch_size: 3 does not divide into"),
        (
            "resolution=64, steps=4, filters=[{column='size', op='>=', value=999}]",
            "no rows are left of",
        ),
    ):
        sets = (f"stages=[{{{stage}}}]", "loop.accumulate=2")
        assert place.pretrain("unet", tmp_path / "out", *sets) == 1
        assert message in error_of(capsys)


def test_a_collapse_is_told(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(clip_module, "COLLAPSE_AFTER", 3)
    for number in range(8):  # nothing tells these apart, so the loss stays at chance
        picture = next(iter(place.data.glob("00.png"))).read_bytes()
        (tmp_path / f"{number}.png").write_bytes(picture)
        (tmp_path / f"{number}.txt").write_text("a thing", encoding="utf-8")
    data = f"data={{path='{tmp_path}', validation_share=0}}"
    assert place.pretrain("clip", tmp_path / "out", data, "shift=0") == 1
    assert "the towers collapsed: after 3 steps the loss is 2.079" in error_of(capsys)


def test_damaged_checkpoints_are_told(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("loop.checkpoint_every=2",)
    assert place.pretrain("clip", tmp_path / "out", *sets) == 0
    newest = tmp_path / "out" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    capsys.readouterr()
    assert place.pretrain("clip", tmp_path / "out", *sets, options=("--resume",)) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: checkpoint ")
    assert lines[0].endswith("; going on from step 2")
    assert_same(final_state(tmp_path / "out"), final_state(place.clip))
