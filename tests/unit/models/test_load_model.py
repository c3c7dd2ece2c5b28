"""Model folders as published: variants, shards, older names, pickles beside the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.files.open import resolve_model_path
from lorasmith.models.files.stored_tensors import canonical_name, choose_weights_file
from lorasmith.models.load import load_model
from lorasmith.models.model import Model

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def assert_same_weights(first: Model, second: Model, rtol: float = 0.0) -> None:
    for part in ("unet", "vae", "text_encoder"):
        actual, expected = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert actual.keys() == expected.keys()
        for key, value in actual.items():
            torch.testing.assert_close(value, expected[key], rtol=rtol, atol=rtol)


def shard(folder: Path, variant: str = "") -> None:
    """Divide a part's weights over two files with an index, as diffusers does."""
    weights = folder / f"{WEIGHTS}.safetensors"
    tensors = load_tensors(weights)
    weights.unlink()
    infix = f".{variant}" if variant else ""
    names = [f"{WEIGHTS}{infix}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    keys = sorted(tensors)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        save_tensors(folder / name, {key: tensors[key] for key in half}, {})
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = folder / f"{WEIGHTS}.safetensors.index{infix}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def in_half(folder: Path, name: str) -> None:
    """Replace the weights by a variant in float16."""
    weights = folder / f"{name}.safetensors"
    halves = {key: value.half() for key, value in load_tensors(weights).items()}
    save_tensors(folder / f"{name}.fp16.safetensors", halves, {})
    weights.unlink()


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_read(folder: Path, tiny_model: Path, variant: str) -> None:
    shard(folder / "unet", variant)
    assert_same_weights(load_model(folder), load_model(tiny_model))


def test_only_variant_is_read(folder: Path, tiny_model: Path) -> None:
    in_half(folder / "unet", WEIGHTS)
    in_half(folder / "text_encoder", "model")
    assert_same_weights(load_model(folder), load_model(tiny_model), rtol=1e-3)


def test_weights_without_a_variant_come_first(folder: Path, tiny_model: Path) -> None:
    unet_folder = folder / "unet"
    plain = unet_folder / f"{WEIGHTS}.safetensors"
    for variant in ("fp16", "non_ema", "bf16"):
        (unet_folder / f"{WEIGHTS}.{variant}.safetensors").write_bytes(b"not read")
    assert choose_weights_file(unet_folder) == plain
    assert_same_weights(load_model(folder), load_model(tiny_model))
    plain.unlink()
    assert choose_weights_file(unet_folder).name == f"{WEIGHTS}.bf16.safetensors"


def test_vae_with_older_names_is_read(folder: Path, tiny_model: Path) -> None:
    path = folder / "vae" / f"{WEIGHTS}.safetensors"
    new = ("to_q", "to_k", "to_v", "to_out.0")
    old = dict(zip(new, ("query", "key", "value", "proj_attn"), strict=True))

    def older(key: str) -> str:
        current = next((name for name in new if f".attentions.0.{name}." in key), None)
        return key.replace(current, old[current]) if current else key

    tensors = {older(key): value for key, value in load_tensors(path).items()}
    assert sum(".query." in key for key in tensors) == 4
    save_tensors(path, tensors, {})
    assert_same_weights(load_model(folder), load_model(tiny_model))


def test_text_encoder_names_may_have_text_model(folder: Path, tiny_model: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key}": value for key, value in load_tensors(path).items()}
    more = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_tensors(path, tensors | more | {"text_projection.weight": torch.ones(2, 2)}, {})
    assert_same_weights(load_model(folder), load_model(tiny_model))
    assert canonical_name("text_encoder_2", "text_projection.weight") == "text_projection.weight"


def only_pickles(folder: Path) -> None:
    (folder / f"{WEIGHTS}.safetensors").rename(folder / f"{WEIGHTS}.bin")


def remove_all_files(folder: Path) -> None:
    (folder / f"{WEIGHTS}.safetensors").unlink()


def lost_shard(folder: Path) -> None:
    shard(folder)
    (folder / f"{WEIGHTS}-00002-of-00002.safetensors").unlink()


def shard_elsewhere(folder: Path) -> None:
    shard(folder)
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(index.read_text().replace(f"{WEIGHTS}-00002", f"../vae/{WEIGHTS}-00002"))


def wrong_index(folder: Path) -> None:
    shard(folder)
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(index.read_text().replace('"conv_in.bias"', '"conv_in.other"'))


def no_index(folder: Path) -> None:
    shard(folder)
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text("[]")


def remove_tensor(folder: Path) -> None:
    path = folder / f"{WEIGHTS}.safetensors"
    tensors = load_tensors(path)
    del tensors["conv_in.bias"]
    save_tensors(path, tensors, {})


def add_tensor(folder: Path) -> None:
    path = folder / f"{WEIGHTS}.safetensors"
    save_tensors(path, load_tensors(path) | {"what": torch.ones(1)}, {})


def other_shape(folder: Path) -> None:
    path = folder / f"{WEIGHTS}.safetensors"
    save_tensors(path, load_tensors(path) | {"conv_in.bias": torch.ones(3)}, {})


FAULTS: dict[str, Callable[[Path], None]] = {
    "has only pickled weights (diffusion_pytorch_model.bin)": only_pickles,
    "has no weights (diffusion_pytorch_model.safetensors or": remove_all_files,
    "names '../vae/diffusion_pytorch_model-00002": shard_elsewhere,
    "1 tensors are not where it says, first conv_in.other": wrong_index,
    "not a list of shards": no_index,
    "1 of 684 tensors are missing (conv_in.bias)": remove_tensor,
    "1 tensors are unknown (what)": add_tensor,
    "1 of 684 tensors do not fit, first conv_in.bias: [3] where its config says [8]": other_shape,
}


def test_lost_shard_is_named(folder: Path) -> None:
    lost_shard(folder / "unet")
    with pytest.raises(WeightsError, match=r"unet/\S+-00002-of-00002\.safetensors is missing"):
        load_model(folder)


@pytest.mark.parametrize("message", FAULTS)
def test_damaged_model_folders_are_named(folder: Path, message: str) -> None:
    FAULTS[message](folder / "unet")
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert text.startswith(f"model {folder}: unet cannot be loaded: ")
    assert message in text
    assert "\n" not in text


def test_loaded_weights_equal_those_of_diffusers_and_transformers(tiny_sdxl: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    model = load_model(tiny_sdxl)
    for part, kind in (
        ("unet", UNet2DConditionModel), ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection),
    ):  # fmt: skip
        theirs = kind.from_pretrained(tiny_sdxl / part)
        ours = getattr(model, part)
        expected = dict([*theirs.named_parameters(), *theirs.named_buffers()])
        current = dict([*ours.named_parameters(), *ours.named_buffers()])
        assert current.keys() == expected.keys()
        assert all(torch.equal(current[key], value) for key, value in expected.items())
        assert ours.training is theirs.training is False
        assert not any(tensor.is_meta for tensor in current.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_as_they_are_read(tiny_sdxl: Path, dtype: torch.dtype) -> None:
    early, late = load_model(tiny_sdxl, dtype), load_model(tiny_sdxl)
    late.to(torch.device("cpu"), dtype)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        actual, expected = getattr(early, part), getattr(late, part)
        assert actual.dtype == expected.dtype
        pairs = zip(actual.parameters(), expected.parameters(), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
    # SDXL's autoencoder overflows in float16.
    assert early.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)


def test_writing_to_a_loaded_model_leaves_its_file_alone(folder: Path, tiny_model: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.zero_()
    assert_same_weights(load_model(folder), load_model(tiny_model))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=rf"{name}: this is a pickled file.*docs/models\.md"):
        resolve_model_path(tmp_path / name)


def test_folder_that_is_not_a_model_is_described(folder: Path) -> None:
    with pytest.raises(WeightsError, match="one part of it, give the folder around it"):
        resolve_model_path(folder / "unet")
    shutil.rmtree(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    changed = {**index, "_class_name": "StableDiffusion3Pipeline"}
    (folder / "model_index.json").write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=r"missing part unet; .* is a StableDiffusion3Pipeline"):
        resolve_model_path(folder)


def test_other_files_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "model.png").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"not a model; give a diffusers folder or a \.safe"):
        resolve_model_path(tmp_path / "model.png")
    with pytest.raises(WeightsError, match=r"modle\.safetensors: no such file"):
        resolve_model_path(tmp_path / "modle.safetensors")
