"""What the pretraining commands say when they cannot go on."""

from pathlib import Path

import pytest

from helpers.tensors import assert_same
from helpers.training.pretrain_runs import PretrainRuns, final_state, last_error
from lorasmith.pretraining import clip as clip_module


@pytest.mark.parametrize(
    ("kind", "sets", "message"),
    [
        ("vae", ("train.setps=3",), "unknown key 'setps' in section [train]; did you mean steps"),
        ("vae", ("losss.kl_weight=1",), "unknown key 'losss' in the top level; did you mean loss"),
        (
            "unet",
            ("architecture.attention_head=3",),
            "unknown key 'attention_head' in section [architecture]",
        ),
        ("unet", ("stages.0=3",), "stages"),
        ("clip", ("train.steps=0",), "train.steps: input should be greater than 0 (got 0)"),
        ("unet", ("train.steps=5",), "train.steps is 5 but the stages' steps add up to 4"),
        ("clip", ("train.mixed_precision=fp16",), "train.mixed_precision: fp16 needs a GPU"),
        (
            "clip",
            ("image_encoder.block_out_channels=[8, 12]",),
            "block_out_channels: 12 does not divide",
        ),
        ("clip", ("image_encoder.layers_per_block=[1]",), "2 stages but layers_per_block has 1"),
        ("clip", ("image_encoder.num_attention_heads=5",), "hidden_size 192 does not divide"),
        (
            "clip",
            ("image_encoder.kind=vit", "image_encoder.patch_size=12"),
            "resolution: 32 is not a multiple of image_encoder.patch_size 12",
        ),
        ("vae", ("loss.perceptual_encoder=/absent.pth",), "/absent.pth: no such weights file"),
        ("clip", ("text_encoder.num_attention_heads=3",), "hidden_size 16 does not divide into 3"),
        (
            "vae",
            ("architecture.norm_num_groups=3",),
            "block_out_channels: 8 does not divide into 3",
        ),
        ("vae", ("resolution=36",), "resolution: 36 is not a multiple of 8"),
        ("unet", ("data.filters=[{column='rol', value=1}]",), "no row has a column 'rol'; did you"),
        (
            "unet",
            ("noise.rescale_betas_zero_snr=true",),
            "predicting the noise (epsilon) says nothing about the image; set prediction_type to",
        ),
        ("unet", ("noise.beta_start=0.5",), "beta_start 0.5 is larger than beta_end 0.012"),
        (
            "unet",
            ("noise.beta_schedule=linear", "noise.beta_end=0.5"),
            "use a smaller beta_end, or fewer num_train_timesteps",
        ),
        ("unet", ("noise.beta_schedule=cosine",), "noise.beta_schedule: "),
        ("unet", ("text_encoder=/absent",), "text_encoder cannot be loaded"),
        ("unet", ("vae=/absent",), "vae cannot be loaded"),
        ("vae", ("loss.perceptual_encoder=/absent",), "/absent: has no image_tower"),
        ("clip", ("merges_file=/absent",), "/absent: cannot be read as a merge list"),
        ("clip", ("num_merges=999999",), "fewer than the required 999999"),
        ("clip", ("data.path=/absent",), "/absent: no such data folder or packed file"),
    ],
)
def test_mistake_is_a_one_line_error(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    kind: str, sets: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert pretrain_runs.pretrain(kind, tmp_path / "out", *sets) == 1
    assert message in last_error(capsys)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_stage_with_an_odd_size_is_named(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, message in (
        ("resolution=60, steps=4", "stages.0.resolution: 60 is not a multiple of 8"),
        (
            "resolution=64, steps=4, filters=[{column='size', op='>=', value=999}]",
            "no rows are left of",
        ),
    ):
        sets = (f"stages=[{{{stage}}}]", "train.gradient_accumulation_steps=2")
        assert pretrain_runs.pretrain("unet", tmp_path / "out", *sets) == 1
        assert message in last_error(capsys)


def test_collapse_is_reported(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(clip_module, "COLLAPSE_AFTER", 3)
    for number in range(8):  # the images are all alike, so the loss stays at chance
        picture = next(iter(pretrain_runs.data.glob("00.png"))).read_bytes()
        (tmp_path / f"{number}.png").write_bytes(picture)
        (tmp_path / f"{number}.txt").write_text("a thing", encoding="utf-8")
    data = f"data={{path='{tmp_path}', validation_split=0, filters=[], flip_aug=false}}"
    assert pretrain_runs.pretrain("clip", tmp_path / "out", data, "random_shift=0") == 1
    assert "the encoders collapsed: after 3 steps the loss is 2.079" in last_error(capsys)


def test_damaged_checkpoints_are_reported(
    pretrain_runs: PretrainRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("train.checkpoint_every_n_steps=2",)
    assert pretrain_runs.pretrain("clip", tmp_path / "out", *sets) == 0
    newest = tmp_path / "out" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    capsys.readouterr()
    assert pretrain_runs.pretrain("clip", tmp_path / "out", *sets, options=("--resume",)) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: checkpoint ")
    assert lines[0].endswith("; continuing from step 2")
    assert_same(final_state(tmp_path / "out"), final_state(pretrain_runs.clip))
