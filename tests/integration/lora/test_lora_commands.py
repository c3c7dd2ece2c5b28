"""`lorasmith lora info`, `lorasmith lora fuse` and `lorasmith model info --targets`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.cli import run
from lorasmith.models.model import Model

ALL_TARGETS = {"targets": "all-linear+conv+text-encoder"}
MIXED = {
    "targets": "attention+text-encoder",
    "overrides": ({"targets": "up.1", "rank": 8, "alpha": 1.0},),
}
FAMILIES = {"sd1": "tiny_model", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}


@pytest.fixture
def lora(tiny_model: Path, tmp_path: Path) -> Path:
    return make_lora(open_model(tiny_model), tmp_path / "ink.safetensors", MIXED, 0.1)


# --- lora info --------------------------------------------------------------------------------


def test_info_shows_the_file(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lora", "info", str(lora)]) == 0
    out = capsys.readouterr().out
    for text in ("SD 1.x (by its metadata)", "Tag     ink", "up.1", "rank 4, 8", "text_encoder",
                 "ss_base_model_version", "sd_v1"):  # fmt: skip
        assert text in out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows[:8] == ["text_encoder", "down.0", "down.1", "down.2", "mid", "up.1", "up.2", "up.3"]


def test_info_as_json_is_what_the_file_holds(
    lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lora", "info", str(lora), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    file = load_lora_file(lora)
    assert (tree["family"], tree["family_source"]) == ("sd1", "metadata")
    assert tree["metadata"] == file.metadata
    assert tree["total"]["layers"] == len(file.layers)
    blocks = {block["block"]: block for block in tree["blocks"]}
    assert blocks["up.1"]["ranks"] == [8]
    assert blocks["up.2"]["ranks"] == [4]
    assert sum(block["layers"] for block in blocks.values()) == len(file.layers)

    def dense(layer: LoraLayer) -> torch.Tensor:
        return layer.alpha / len(layer.down) * layer.up.flatten(1) @ layer.down.flatten(1)

    inside = [dense(layer) for name, layer in file.layers.items() if "_up_blocks_1_" in name]
    norm = torch.cat([delta.flatten() for delta in inside]).norm()
    assert blocks["up.1"]["norm"] == pytest.approx(float(norm), rel=1e-4)
    assert blocks["up.1"]["largest_norm"] == pytest.approx(
        float(max(d.norm() for d in inside)), 1e-4
    )


def test_norm_needs_no_product() -> None:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(3, 5, 3, 3, generator=generator)
    up = torch.randn(7, 3, 1, 1, generator=generator)
    dense = -2.0 / 3 * up.flatten(1) @ down.flatten(1)
    assert LoraLayer(down, up, -2.0).delta_norm() == pytest.approx(float(dense.norm()), rel=1e-5)
    assert LoraLayer(down, 0 * up, 1.0).delta_norm() == 0.0


def test_family_is_known_without_metadata(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_model(request.getfixturevalue("tiny_sdxl"))
    path = make_lora(model, tmp_path / "xl.safetensors", {"targets": "attention"}, 0.1)
    save_file(load_file(path), tmp_path / "bare.safetensors")
    wide = {"lora_down.weight": torch.ones(2, 1024), "lora_up.weight": torch.ones(8, 2)}
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.{k}": v for k, v in wide.items()}, tmp_path / "two.safetensors")
    tensors = {"x.lora_down.weight": torch.ones(2, 10), "x.lora_up.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "unknown.safetensors")
    result = {}
    for stem in ("bare", "two", "unknown"):
        assert run(["lora", "info", str(tmp_path / f"{stem}.safetensors"), "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        result[stem] = tree["family"], tree["family_source"]
    assert result == {"bare": ("sdxl", "names"), "two": ("sd2", "shapes"), "unknown": (None, "")}
    assert run(["lora", "info", str(tmp_path / "bare.safetensors")]) == 0
    assert "IN04" in capsys.readouterr().out


def test_metadata_cannot_steer_the_terminal(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"ss_output_name": "\x1b[31mred [bold]x", "ss_tag_frequency": "x" * 5000}
    save_file(load_file(lora), lora, data)
    assert run(["lora", "info", str(lora)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mred [bold]x" in out
    assert "(5000 characters)" in out


def test_info_of_a_missing_file_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lora", "info", str(tmp_path / "no.safetensors")]) == 1
    assert "no such weights file" in capsys.readouterr().err


def test_lora_for_a_later_family_is_recognized(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "later.safetensors"
    block = "transformer.single_blocks.0.attn.to_q"
    save_file(
        {f"{block}.lora_A.weight": torch.ones(2, 8), f"{block}.lora_B.weight": torch.ones(8, 2)},
        path,
    )
    assert run(["lora", "info", str(path)]) == 0
    assert "a later one (Flux, SD 3), which lorasmith cannot use" in capsys.readouterr().out
    assert run(["generate", "x", "-m", str(tiny_model), "--lora", str(path)]) == 1
    err = capsys.readouterr().err
    assert "0 of its 1 layers" in err
    assert "for a later family (Flux, SD 3)" in err


# --- lora fuse --------------------------------------------------------------------------------


def picture(model: Model) -> np.ndarray:
    pipe = RecordingPipeline(model)
    pipe("a red apple", seed=3, negative_prompt="blurry", num_inference_steps=4, guidance_scale=4.0)
    return pipe.decoded[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_with_fused_and_attached_lora_agree(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    source = request.getfixturevalue(FAMILIES[family])
    model = open_model(source)
    lora_file = make_lora(model, tmp_path / "one.safetensors", ALL_TARGETS | {"init": "pissa"}, 0.1)
    two = make_lora(model, tmp_path / "two.safetensors", {"targets": "attention"}, 0.2, seed=2)
    base = picture(model)
    first, second = (
        attach_lora(model, load_lora_file(lora_file), 0.7),
        attach_lora(model, load_lora_file(two)),
    )
    expected = picture(model)
    second.detach()
    only_first = picture(model)
    first.detach()
    out = tmp_path / "baked"
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}

    assert run(["lora", "fuse", str(source), f"{lora_file}:0.7", str(two), "--out", str(out)]) == 0

    baked = picture(open_model(out))
    np.testing.assert_allclose(baked, expected, atol=1e-3)
    assert abs(expected - base).max() > 0.02
    assert abs(expected - only_first).max() > 0.005
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
    assert (out / "vae/config.json").read_bytes() == (source / "vae/config.json").read_bytes()


def test_embedded_model_is_opened_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasmith.models.files.open import EMBEDDED

    model = open_model(EMBEDDED)
    file = make_lora(model, tmp_path / "ink.safetensors", {"targets": "attention"}, 0.03)
    out = tmp_path / "models" / "ink"
    assert run(["lora", "fuse", "embedded", f"{file}:0.5", "--out", str(out)]) == 0
    assert f"{out}: 1 LoRA fused into unet" in capsys.readouterr().out.replace("\n", "")
    # Only what the model's index names is copied.
    assert not (out / "image_tower").exists()
    attached = attach_lora(model, load_lora_file(file), 0.5)
    np.testing.assert_allclose(picture(open_model(out)), picture(model), atol=1e-3)
    attached.detach()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("fp32", torch.float32)])
def test_changed_parts_have_the_given_precision(
    tiny_model: Path, tmp_path: Path, lora: Path, precision: str, dtype: torch.dtype
) -> None:
    out = tmp_path / "out"
    command = ["lora", "fuse", str(tiny_model), str(lora), "--out", str(out)]
    assert run([*command, "--precision", precision]) == 0
    for part in ("unet", "text_encoder"):
        stored = load_file(next((out / part).glob("*.safetensors")))
        assert {tensor.dtype for tensor in stored.values()} == {dtype}


def refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(tmp_path.rglob("*"))
    assert run(["lora", "fuse", *arguments]) == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    return capsys.readouterr().err


def test_failed_merge_writes_nothing(
    tiny_model: Path, tiny_sdxl: Path, tmp_path: Path, lora: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, source = str(tmp_path / "out"), str(tiny_model)
    huge = tmp_path / "huge.safetensors"
    tensors = {k: v * 1e30 if k.endswith("up.weight") else v for k, v in load_file(lora).items()}
    save_file({k: v * 1e6 if "down" in k else v for k, v in tensors.items()}, huge)

    assert "88 of its 152" in refused([str(tiny_sdxl), str(lora), "--out", out], tmp_path, capsys)
    # The second does not fit: the first is not merged either.
    assert "no.safetensors" in refused(
        [source, str(lora), str(tmp_path / "no.safetensors"), "--out", out], tmp_path, capsys
    )
    assert "merged weight is not finite" in refused(
        [source, str(huge), "--out", out], tmp_path, capsys
    )
    # Too large for float16 only.
    big = tmp_path / "big.safetensors"
    save_file({k: v * 1e9 if "up.w" in k else v for k, v in load_file(lora).items()}, big)
    assert "not finite in float16" in refused(
        [source, str(big), "--out", out, "--precision", "fp16"], tmp_path, capsys
    )
    assert "not between" in refused([source, f"{lora}:1e9", "--out", out], tmp_path, capsys)
    assert "not between" in refused([source, f"{lora}:nan", "--out", out], tmp_path, capsys)
    assert "is not a number" in refused([source, f"{lora}:full", "--out", out], tmp_path, capsys)
    assert "no such folder" in refused(["no-model", str(lora), "--out", out], tmp_path, capsys)
    assert "something is there already" in refused(
        [source, str(lora), "--out", str(tmp_path)], tmp_path, capsys
    )
    for name in ("one.safetensors", "one.ckpt"):
        line = refused([source, str(lora), "--out", str(tmp_path / name)], tmp_path, capsys)
        assert "a fused model is a folder" in line

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    assert "No space left" in refused([source, str(lora), "--out", out], tmp_path, capsys)


# --- model info --targets ---------------------------------------------------------------------


def test_targets_show_what_is_trained(tiny_sdxl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model", "info", str(tiny_sdxl), "--targets", "attention,text-encoder"]
    assert run(command) == 0
    out = capsys.readouterr().out
    for text in ("LoRA on attention,text-encoder, rank 16", "text_encoder_2", "mid", "up.0"):
        assert text in out
    assert "down.0" not in out


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_as_json_agree_with_the_model(
    request: pytest.FixtureRequest, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.lora_files import RATES
    from lorasmith.adapters.injection.trainable import inject_trainable
    from lorasmith.adapters.targeting.targets import resolve_targets
    from lorasmith.config.lora import LoraConfig

    folder = request.getfixturevalue(FAMILIES[family])
    targets = "all-linear+conv,text-encoder"
    assert run(["model", "info", str(folder), "--targets", targets, "--lora", "3", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)

    model, lora = open_model(folder), LoraConfig(rank=3, targets=targets)
    trainable = inject_trainable(resolve_targets(model, lora, RATES), lora, 0)
    assert [module["name"] for module in tree["modules"]] == list(trainable.adapters)
    assert tree["total"]["lora"] == sum(p.numel() for p in trainable.parameters())
    refs = [target.ref for target in trainable.targets]
    weights = sum(ref.layer.weight.numel() for ref in refs)
    trainable.detach()
    parameter_count = sum(
        p.numel() for network in (model.unet, *model.text_encoders) for p in network.parameters()
    )
    assert tree["total"]["parameters"] == weights
    assert tree["total"]["share"] == pytest.approx(weights / parameter_count)
    assert sum(block["modules"] for block in tree["blocks"].values()) == len(refs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "atention"], "did you mean attention"),
        (["--targets", "up.0"], "such layers are in"),
        (["--targets", "mid", "--lora", "0"], "rank 0 is not possible"),
    ],
)
def test_targets_that_match_no_layer_are_an_error(
    tiny_model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "info", str(tiny_model), *arguments]) == 1
    assert message in capsys.readouterr().err
