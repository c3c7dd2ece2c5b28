"""Folders as they are published: variants, shards, older names, pickles beside the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.models.files.stored_tensors import canonical_name, choose_weights_file
from lorasmith.models.load import Model, load_model, resolve_model_path

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def same(one: Model, other: Model, rtol: float = 0.0) -> None:
    for part in ("unet", "vae", "text_encoder"):
        mine, yours = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert mine.keys() == yours.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, yours[key], rtol=rtol, atol=rtol)


def shard(place: Path, variant: str = "") -> None:
    """Divide a part's weights over two files with an index, as diffusers does."""
    whole = place / f"{WEIGHTS}.safetensors"
    tensors = load_tensors(whole)
    whole.unlink()
    infix = f".{variant}" if variant else ""
    names = [f"{WEIGHTS}{infix}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    keys = sorted(tensors)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        save_tensors(place / name, {key: tensors[key] for key in half}, {})
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = place / f"{WEIGHTS}.safetensors.index{infix}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def in_half(place: Path, name: str) -> None:
    """Replace the weights by a variant in float16."""
    whole = place / f"{name}.safetensors"
    halves = {key: value.half() for key, value in load_tensors(whole).items()}
    save_tensors(place / f"{name}.fp16.safetensors", halves, {})
    whole.unlink()


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards(folder: Path, tiny_model: Path, variant: str) -> None:
    shard(folder / "unet", variant)
    same(load_model(folder), load_model(tiny_model))


def test_a_variant_is_read_where_there_is_nothing_else(folder: Path, tiny_model: Path) -> None:
    in_half(folder / "unet", WEIGHTS)
    in_half(folder / "text_encoder", "model")
    same(load_model(folder), load_model(tiny_model), rtol=1e-3)


def test_the_plain_weights_come_first(folder: Path, tiny_model: Path) -> None:
    place = folder / "unet"
    plain = place / f"{WEIGHTS}.safetensors"
    for variant in ("fp16", "non_ema", "bf16"):
        (place / f"{WEIGHTS}.{variant}.safetensors").write_bytes(b"not looked at")
    assert choose_weights_file(place) == plain
    same(load_model(folder), load_model(tiny_model))
    plain.unlink()
    assert choose_weights_file(place).name == f"{WEIGHTS}.bf16.safetensors"


def test_an_autoencoder_with_older_names(folder: Path, tiny_model: Path) -> None:
    path = folder / "vae" / f"{WEIGHTS}.safetensors"
    new = ("to_q", "to_k", "to_v", "to_out.0")
    old = dict(zip(new, ("query", "key", "value", "proj_attn"), strict=True))

    def older(key: str) -> str:
        found = next((name for name in new if f".attentions.0.{name}." in key), None)
        return key.replace(found, old[found]) if found else key

    tensors = {older(key): value for key, value in load_tensors(path).items()}
    assert sum(".query." in key for key in tensors) == 4
    save_tensors(path, tensors, {})
    same(load_model(folder), load_model(tiny_model))


def test_text_encoders_with_and_without_the_level(folder: Path, tiny_model: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key}": value for key, value in load_tensors(path).items()}
    more = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_tensors(path, tensors | more | {"text_projection.weight": torch.ones(2, 2)}, {})
    same(load_model(folder), load_model(tiny_model))
    assert canonical_name("text_encoder_2", "text_projection.weight") == "text_projection.weight"


def only_pickles(place: Path) -> None:
    (place / f"{WEIGHTS}.safetensors").rename(place / f"{WEIGHTS}.bin")


def nothing(place: Path) -> None:
    (place / f"{WEIGHTS}.safetensors").unlink()


def lost_shard(place: Path) -> None:
    shard(place)
    (place / f"{WEIGHTS}-00002-of-00002.safetensors").unlink()


def shard_elsewhere(place: Path) -> None:
    shard(place)
    index = place / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(index.read_text().replace(f"{WEIGHTS}-00002", f"../vae/{WEIGHTS}-00002"))


def wrong_index(place: Path) -> None:
    shard(place)
    index = place / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(index.read_text().replace('"conv_in.bias"', '"conv_in.other"'))


def no_index(place: Path) -> None:
    shard(place)
    (place / f"{WEIGHTS}.safetensors.index.json").write_text("[]")


def one_less(place: Path) -> None:
    path = place / f"{WEIGHTS}.safetensors"
    tensors = load_tensors(path)
    del tensors["conv_in.bias"]
    save_tensors(path, tensors, {})


def one_more(place: Path) -> None:
    path = place / f"{WEIGHTS}.safetensors"
    save_tensors(path, load_tensors(path) | {"what": torch.ones(1)}, {})


def other_shape(place: Path) -> None:
    path = place / f"{WEIGHTS}.safetensors"
    save_tensors(path, load_tensors(path) | {"conv_in.bias": torch.ones(3)}, {})


FAULTS: dict[str, Callable[[Path], None]] = {
    "has only pickled weights (diffusion_pytorch_model.bin)": only_pickles,
    "has no weights (diffusion_pytorch_model.safetensors or": nothing,
    "-00002-of-00002.safetensors: no such weights file": lost_shard,
    "names '../vae/diffusion_pytorch_model-00002": shard_elsewhere,
    "1 tensors are not where it says, first conv_in.other": wrong_index,
    "not a list of shards": no_index,
    "1 of 684 tensors are missing (conv_in.bias)": one_less,
    "1 tensors are unknown (what)": one_more,
    "1 of 684 tensors do not fit, first conv_in.bias: [3] where its config says [8]": other_shape,
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named(folder: Path, message: str) -> None:
    FAULTS[message](folder / "unet")
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert text.startswith(f"model {folder}: unet cannot be loaded: ")
    assert message in text
    assert "\n" not in text


def test_loading_is_what_diffusers_and_transformers_load(tiny_sdxl: Path) -> None:
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
        found = dict([*ours.named_parameters(), *ours.named_buffers()])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert ours.training is theirs.training is False
        assert not any(tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_as_they_are_read(tiny_sdxl: Path, dtype: torch.dtype) -> None:
    early, late = load_model(tiny_sdxl, dtype), load_model(tiny_sdxl)
    late.to(torch.device("cpu"), dtype)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, yours = getattr(early, part), getattr(late, part)
        assert mine.dtype == yours.dtype
        pairs = zip(mine.parameters(), yours.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    # SDXL's autoencoder overflows in float16.
    assert early.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)


def test_writing_to_a_loaded_model_leaves_its_file_alone(folder: Path, tiny_model: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.zero_()
    same(load_model(folder), load_model(tiny_model))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=rf"{name}: this is a pickled file.*docs/models\.md"):
        resolve_model_path(tmp_path / name)


def test_what_is_no_model_folder_is_said(folder: Path) -> None:
    with pytest.raises(WeightsError, match="one part of it, give the folder around it"):
        resolve_model_path(folder / "unet")
    shutil.rmtree(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    changed = {**index, "_class_name": "StableDiffusion3Pipeline"}
    (folder / "model_index.json").write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=r"missing part unet; .* is a StableDiffusion3Pipeline"):
        resolve_model_path(folder)


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "model.png").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"not a model; give a diffusers folder or a \.safe"):
        resolve_model_path(tmp_path / "model.png")
    with pytest.raises(WeightsError, match=r"modle\.safetensors: no such file"):
        resolve_model_path(tmp_path / "modle.safetensors")
