"""`lorasmith lora convert`, `merge`, `resize`, `extract`, `diff`; other kinds than LoRA in use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorasmith
from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.kinds.dora import DoraLayer
from lorasmith.adapters.kinds.loha import LohaLayer
from lorasmith.adapters.kinds.lokr import LokrLayer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.cli import run
from lorasmith.models.model import Model

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def loras(model: Model, tmp_path: Path) -> tuple[Path, Path]:
    first = make_lora(
        model, tmp_path / "one.safetensors", {"targets": "attention+text-encoder"}, 0.1
    )
    second = make_lora(model, tmp_path / "two.safetensors", {"targets": "up.1+conv"}, 0.1, seed=2)
    return first, second


def picture(model: Model, *files: tuple[Path, float]) -> np.ndarray:
    attached = [attach_lora(model, load_lora_file(path), weight) for path, weight in files]
    pipe = RecordingPipeline(model)
    pipe("a red apple", seed=3, num_inference_steps=2, guidance_scale=3.0)
    for lora in attached:
        lora.detach()
    return pipe.decoded[0].numpy()


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(folder.rglob("*"))
    assert run(["lora", *arguments]) == 1
    assert sorted(folder.rglob("*")) == before, "nothing is written"
    return " ".join(capsys.readouterr().err.split())


def test_merged_file_draws_as_its_parts(
    model: Model, loras: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = loras
    out = tmp_path / "sum.safetensors"
    command = [
        "lora",
        "merge",
        f"{first}:0.7",
        f"{second}:-0.3",
        "--out",
        str(out),
        "--precision",
        "fp32",
    ]
    assert run(command) == 0
    assert "the sum of 2 LoRAs" in capsys.readouterr().out
    expected = picture(model, (first, 0.7), (second, -0.3))
    np.testing.assert_allclose(picture(model, (out, 1.0)), expected, atol=1e-4)
    assert abs(expected - picture(model)).max() > 0.01
    data = load_lora_file(out).metadata
    assert data["modelspec.merged_from"] == "ink, ink"
    assert (data["ss_output_name"], data["ss_base_model_version"]) == ("sum", "sd_v1")
    assert data["lorasmith.gate"] == "prompt", "both wait for the same tag"

    small = tmp_path / "small.safetensors"
    assert run([*command[:4], "--out", str(small), "--rank", "2"]) == 0
    assert "% of the energy kept" in capsys.readouterr().out
    assert max(layer.rank for layer in load_lora_file(small).layers.values()) == 2


def test_merge_weighs_blocks_separately(
    model: Model, loras: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    lora_file = loras[0]
    out, baked = tmp_path / "out.safetensors", tmp_path / "baked"
    assert run(["lora", "merge", f"{lora_file}:0.5:lbw=OUTALL", "--out", str(out)]) == 0
    names = set(load_lora_file(out).layers)
    assert any("_up_blocks_" in name for name in names)
    assert not any("_down_blocks_" in name for name in names)
    source = str(model.path)
    assert run(["lora", "fuse", source, f"{lora_file}:0.5:lbw=OUTALL", "--out", str(baked)]) == 0
    drawn = picture(open_model(baked))
    np.testing.assert_allclose(drawn, picture(model, (out, 1.0)), atol=2e-3)
    assert "12 numbers" not in capsys.readouterr().err
    vector = ",".join(["1"] * 12)
    more = str(tmp_path / "no.safetensors")
    err = refused(["merge", f"{lora_file}:1:lbw={vector}", "--out", more], tmp_path, capsys)
    assert "SD 1.x and 2.x takes 17 or 26" in err
    assert "every layer has weight 0" in refused(
        ["merge", f"{lora_file}:1:lbw=NONE", "--out", more], tmp_path, capsys
    )


def test_resized_file_keeps_its_image(
    model: Model, loras: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora_file = loras[0]
    full, reduced = tmp_path / "full.safetensors", tmp_path / "less.safetensors"
    assert (
        run(
            [
                "lora",
                "resize",
                str(lora_file),
                "--energy",
                "1",
                "--out",
                str(full),
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    assert "100.00% of the energy kept" in capsys.readouterr().out
    np.testing.assert_allclose(
        picture(model, (full, 1.0)), picture(model, (lora_file, 1.0)), atol=1e-4
    )
    assert run(["lora", "resize", str(lora_file), "--rank", "1", "--out", str(reduced)]) == 0
    assert {layer.rank for layer in load_lora_file(reduced).layers.values()} == {1}
    data = load_lora_file(reduced).metadata
    assert (data["ss_network_dim"], data["lorasmith.tag"]) == ("1", "ink")


def test_fused_lora_is_extracted(
    model: Model, loras: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora_file, source = loras[0], str(model.path)
    baked, out = tmp_path / "baked", tmp_path / "taken.safetensors"
    assert run(["lora", "fuse", source, str(lora_file), "--out", str(baked)]) == 0
    command = ["lora", "extract", str(baked), source, "--rank", "4", "--precision", "fp32"]
    assert run([*command, "--out", str(out)]) == 0
    assert "100.00% of the energy kept" in capsys.readouterr().out
    np.testing.assert_allclose(
        picture(model, (out, 1.0)), picture(model, (lora_file, 1.0)), atol=1e-3
    )
    result = lorasmith.diff_loras(lora_file, out)
    assert result.total.diff_norm < 1e-3 * result.total.first_norm
    assert "no layer differs" in refused(
        ["extract", source, source, "--rank", "4", "--out", str(tmp_path / "x.safetensors")],
        tmp_path, capsys,
    )  # fmt: skip


def test_difference_is_shown(loras: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(path) for path in loras)
    assert run(["lora", "diff", first, second]) == 0
    out = capsys.readouterr().out
    for text in ("BASE", "MID", "cosine", f"only in {first}"):
        assert text in out
    assert run(["lora", "diff", first, second, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["total"]["block"] == "all"
    assert tree["total"]["cosine"] < 0.5


def test_convert_writes_other_formats_and_refuses_impossible_ones(
    loras: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora_file, out = str(loras[0]), str(tmp_path / "out.safetensors")
    assert run(["lora", "convert", lora_file, out, "--to", "diffusers"]) == 0
    assert "in the key format of diffusers" in " ".join(capsys.readouterr().out.split())
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(out))
    assert run(["lora", "info", out]) == 0
    assert "LoRA, in the key format of diffusers" in capsys.readouterr().out
    assert "something is there already" in refused(["convert", lora_file, out], tmp_path, capsys)
    err = refused(["convert", lora_file, str(tmp_path / "out.pt")], tmp_path, capsys)
    assert "ends in .safetensors" in err
    new = str(tmp_path / "new.safetensors")
    parts = {
        k: torch.ones(s)
        for k, s in {"w1_a": (16, 1), "w1_b": (1, 16), "w2_a": (16, 1), "w2_b": (1, 16)}.items()
    }
    loha = tmp_path / "loha.safetensors"
    save_file({f"{KEY}.hada_{key}": part for key, part in parts.items()}, loha)
    err = refused(["convert", str(loha), new, "--to", "diffusers"], tmp_path, capsys)
    assert "no keys for 1 LoHa of 1 layers" in err
    err = refused(["convert", lora_file, new, "--family", "sdxl"], tmp_path, capsys)
    assert "by its metadata it is for SD 1.x, not for SDXL; leave --family out" in err
    peft_file = tmp_path / "bare.safetensors"
    save_file(load_file(lora_file), peft_file)
    err = refused(["convert", str(peft_file), new, "--family", "sdxl"], tmp_path, capsys)
    assert f"{peft_file}: lora_unet_" in err
    assert "has no place in SDXL" in err
    err = refused(
        ["merge", f"{lora_file}:0.5", f"{lora_file}:-0.5", "--out", new], tmp_path, capsys
    )
    assert "cancel each other out; not saved" in err
    assert "give either a rank" in refused(["resize", lora_file, "--out", new], tmp_path, capsys)
    arguments = ["resize", lora_file, "--rank", "2", "--energy", "0.5", "--out", new]
    assert "give either a rank" in refused(arguments, tmp_path, capsys)
    assert "rank 0 is not" in refused(
        ["resize", lora_file, "--rank", "0", "--out", new], tmp_path, capsys
    )
    err = refused(["resize", lora_file, "--energy", "1.5", "--out", new], tmp_path, capsys)
    assert "energy 1.5 is not possible" in err
    assert run(["lora", "resize", str(loha), "--rank", "2", "--out", new]) == 0
    (layer,) = load_lora_file(Path(new)).layers.values()
    assert isinstance(layer, LoraLayer)


def other_kinds(model: Model, path: Path) -> Path:
    """DoRA, LoHa and LoKr with large factors in one file."""
    plain = load_lora_file(make_lora(model, path, {"targets": "attention"}, 0.3))
    torch.manual_seed(0)
    layers: dict[str, Any] = {}
    for index, (name, layer) in enumerate(plain.layers.items()):
        out, inner = layer.matrix_shape
        if index % 3 == 0:
            layers[name] = DoraLayer(layer, torch.rand(out) + 0.5, on_input=False)
        elif index % 3 == 1:
            shapes = {
                "hada_w1_a": (out, 2),
                "hada_w1_b": (2, inner),
                "hada_w2_a": (out, 2),
                "hada_w2_b": (2, inner),
            }
            layers[name] = LohaLayer({k: 0.3 * torch.randn(s) for k, s in shapes.items()}, 2.0)
        else:
            halves = {"lokr_w1": (2, 2), "lokr_w2": (out // 2, inner // 2)}
            layers[name] = LokrLayer({k: 0.3 * torch.randn(s) for k, s in halves.items()}, 1.0)
    target = path.with_name("kinds.safetensors")
    save_lora_file(target, layers, plain.metadata, torch.float32)
    return target


def test_other_kinds_are_drawn_fused_merged_and_shown(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, source = other_kinds(model, tmp_path / "plain.safetensors"), str(model.path)
    drawn = picture(model, (file, 0.6))
    assert abs(drawn - picture(model)).max() > 0.02
    np.testing.assert_array_equal(picture(model, (file, 0.0)), picture(model))

    baked, summed = tmp_path / "baked", tmp_path / "sum.safetensors"
    assert run(["lora", "fuse", source, f"{file}:0.6", "--out", str(baked)]) == 0
    opened = open_model(baked)
    np.testing.assert_allclose(picture(opened), drawn, atol=1e-3)

    merge = ["merge", f"{file}:0.6", "--out", str(summed), "--precision", "fp32"]
    assert "name its base model with --base" in refused(merge, tmp_path, capsys)
    assert run(["lora", *merge, "--base", source]) == 0
    np.testing.assert_allclose(picture(model, (summed, 1.0)), drawn, atol=1e-3)

    assert run(["lora", "info", str(file)]) == 0
    assert "DoRA, LoHa, LoKr" in capsys.readouterr().out
    info = lorasmith.lora_info(file)
    assert (info.kinds, info.key_formats) == (("DoRA", "LoHa", "LoKr"), ("kohya",))


def test_mismatch_may_be_allowed(
    tiny_model: Path, loras: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unmatched layers or another prediction type: an error, and a warning with the flag."""
    mismatched = tmp_path / "odd.safetensors"
    tensors = load_file(loras[0])
    name = "lora_unet_up_blocks_9_attentions_0_proj_in"
    extra = {
        f"{name}.lora_down.weight": torch.ones(1, 8),
        f"{name}.lora_up.weight": torch.ones(8, 1),
    }
    save_file({**tensors, **extra}, mismatched, {"modelspec.prediction_type": "v"})
    draw = [
        "generate", "a cat", "-m", str(tiny_model), "--lora", str(mismatched), "--steps", "1",
        "-n", "1",
        "--device", "cpu", "--out", str(tmp_path / "drawn"),
    ]  # fmt: skip
    assert run(draw) == 1
    count = len(tensors) // 3
    assert f"{count} of its {count + 1} layers exist in this model" in capsys.readouterr().err
    assert run([*draw, "--allow-mismatch"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert f"{count} of its {count + 1} layers exist" in err
    assert "made for models that predict v_prediction" in err
    assert err.count("used all the same, as you asked") == 2
    assert (tmp_path / "drawn" / "0000.png").is_file()
    bake = ["lora", "fuse", str(tiny_model), str(mismatched), "--out", str(tmp_path / "baked")]
    assert run(bake) == 1
    assert run([*bake, "--allow-mismatch"]) == 0
    unmatched = tmp_path / "none.safetensors"
    save_file(extra, unmatched)
    draw[draw.index(str(mismatched))] = str(unmatched)
    assert run([*draw, "--allow-mismatch"]) == 1, "nothing fits"
    assert "0 of its 1 layers exist" in capsys.readouterr().err
