"""What files that are made from others do with names and tensors that are not understood."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file, read_lora_file
from lorasmith.adapters.tools.canonical_layers import canonical_layers
from lorasmith.adapters.tools.file_operations import (
    KeyFormat,
    WeightedLora,
    convert_lora,
    diff_loras,
    merge_loras,
    resize_lora,
)
from lorasmith.adapters.tools.info import summarize_lora
from lorasmith.core.errors import LorasmithWarning, WeightsError

BLOCK = "attentions_0_transformer_blocks_0_attn2_to_k"
KOHYA = f"lora_unet_down_blocks_1_{BLOCK}"
SGM = f"lora_unet_input_blocks_4_1_{BLOCK.removeprefix('attentions_0_')}"
NORM, EMBEDDING = f"{KOHYA.removesuffix('_attn2_to_k')}_norm1.w_norm", "bundle_emb.my token.clip_l"
Tensors = dict[str, torch.Tensor]


def lora(*names: str, width: int = 768) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(640, 2, generator=generator)
    return tensors


def write(folder: Path, tensors: Tensors, name: str = "some") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, lora(KOHYA, SGM, width=2048))
    with pytest.raises(WeightsError, match=r"is in it twice, .* two names, as .* and as "):
        load_lora_file(path)
    layer = load_lora_file(write(tmp_path, lora(KOHYA))).layers[KOHYA]
    with pytest.raises(WeightsError, match="is in it under two names"):
        canonical_layers(LoraFile(path, {KOHYA: layer, SGM: layer}, {}), "sdxl")


def test_spellings_of_one_layer_add_up(tmp_path: Path) -> None:
    dotted = f"diffusion_model.{SGM.removeprefix('lora_unet_')}"
    dotted = dotted.replace("input_blocks_4_1_", "input_blocks.4.1.")
    dotted = dotted.replace("transformer_blocks_0_attn2_", "transformer_blocks.0.attn2.")
    files = [
        write(tmp_path, lora(name, width=2048), f"file{index}")
        for index, name in enumerate((KOHYA, SGM, dotted))
    ]
    out = tmp_path / "sum.safetensors"
    merge_loras([WeightedLora(file) for file in files], out, precision="fp32")
    layers = load_lora_file(out).layers
    assert list(layers) == [SGM]
    single = load_lora_file(files[0]).layers[KOHYA]
    torch.testing.assert_close(layers[SGM].delta(), 3 * single.delta(), rtol=1e-4, atol=1e-4)
    assert diff_loras(files[0], files[2]).total.diff_norm == pytest.approx(0.0, abs=1e-3)


def test_path_without_a_weight_is_merged_with_weight_one(tmp_path: Path) -> None:
    path, out = write(tmp_path, lora(KOHYA, width=2048)), tmp_path / "sum.safetensors"
    merge_loras([str(path), WeightedLora(path, 0.5)], out, precision="fp32")
    expected = 1.5 * load_lora_file(path).layers[KOHYA].delta()
    torch.testing.assert_close(load_lora_file(out).layers[SGM].delta(), expected)


@pytest.mark.parametrize("name", ["lora_unet_elsewhere", "lora_unet_double_blocks_0_img_attn_qkv"])
def test_unknown_layers_are_refused_by_every_operation(tmp_path: Path, name: str) -> None:
    path, out = write(tmp_path, lora(KOHYA, name)), tmp_path / "out.safetensors"
    operations = (
        lambda: convert_lora(path, out),
        lambda: convert_lora(path, out, key_format="diffusers"),
        lambda: merge_loras([WeightedLora(path)], out),
        lambda: resize_lora(path, out, rank=1),
        lambda: diff_loras(path, path),
    )
    for operation in operations:
        with pytest.raises(WeightsError, match=rf"1 of its 2 layers .* first {name}"):
            operation()
    assert not out.exists()
    with pytest.warns(LorasmithWarning, match="1 of its 2 layers .* left out, as you asked"):
        convert_lora(path, out, ignore_unknown=True)
    assert list(load_lora_file(out).layers) == [KOHYA]
    assert summarize_lora(read_lora_file(path)).unknown_layers == (name,)


def test_file_of_unknown_layers_alone_is_refused_always(tmp_path: Path) -> None:
    path = write(tmp_path, lora("lora_unet_elsewhere"))
    with pytest.raises(WeightsError, match=r"1 of its 1 layers .* another kind of model"):
        convert_lora(path, tmp_path / "out.safetensors", ignore_unknown=True)


def test_unknown_tensors_are_listed_and_left_out_where_asked(tmp_path: Path) -> None:
    others = {NORM: torch.ones(3), f"{KOHYA}.diff_b": torch.ones(3), "_aux.0a1b": torch.ones(3)}
    other = KOHYA.replace("to_k", "to_v")
    oft = {f"{other}.oft_diag": torch.ones(3), f"{other}.alpha": torch.ones(())}
    path = write(tmp_path, lora(KOHYA) | others | oft)
    with pytest.raises(WeightsError, match=r"5 of 7 keys are no LoRA keys, first .*--ignore-unk"):
        load_lora_file(path)
    with pytest.warns(LorasmithWarning, match="2 other tensors, .*1 norms.*its 1 layers are used"):
        file = load_lora_file(path, ignore_unknown=True)
    assert list(file.layers) == [KOHYA]
    facts = summarize_lora(read_lora_file(path))
    assert facts.unknown_tensors == {"other tensors": 2, "norms": 1, "biases": 1, "OFT": 1}


@pytest.mark.parametrize("key_format", ["kohya", "diffusers"])
def test_bundled_embeddings_survive_conversion(tmp_path: Path, key_format: KeyFormat) -> None:
    embedding = torch.randn(2, 768).half()
    path = write(tmp_path, lora(KOHYA) | {EMBEDDING: embedding})
    converted, resized = tmp_path / "converted.safetensors", tmp_path / "resized.safetensors"
    convert_lora(path, converted, key_format)
    resize_lora(converted, resized, rank=1)
    for file in (converted, resized):
        assert torch.equal(load_file(file)[EMBEDDING], embedding)
        assert list(load_lora_file(file).embeddings) == [EMBEDDING]


def test_bundled_embeddings_of_all_files_are_in_a_sum(tmp_path: Path) -> None:
    first = write(tmp_path, lora(KOHYA) | {EMBEDDING: torch.ones(2, 4)}, "first")
    second = write(
        tmp_path,
        lora(KOHYA) | {EMBEDDING: torch.zeros(2, 4), "bundle_emb.b.clip_l": torch.ones(1, 4)},
        "second",
    )
    out = tmp_path / "sum.safetensors"
    with pytest.warns(LorasmithWarning, match="second.*my token.* differs from that of another"):
        merge_loras([WeightedLora(first), WeightedLora(second)], out)
    embeddings = load_lora_file(out).embeddings
    assert torch.equal(embeddings[EMBEDDING], torch.ones(2, 4))
    assert "bundle_emb.b.clip_l" in embeddings
