"""LoRA files: round trips, what is refused, and what other programs make of them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasmith.adapters.files.lora_family import detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file, save_lora_file
from lorasmith.adapters.files.metadata import LoraMetadata, PartSummary, build_metadata
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.models.model import Model

MakeLora = Callable[..., LoraFile]
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

FACTS = LoraMetadata(
    name="ink", tag="inkmono", family="sd1", prediction_type="epsilon",
    parts={"unet": PartSummary(4, 2.0, 64)}, resolution=128,
    tag_frequency={"inkmono style": 3, "a cat": 1}, dataset="pictures",
)  # fmt: skip


def tensors(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    parts: dict[str, torch.Tensor | None] = {
        "lora_down": torch.ones(2, 4), "lora_up": torch.ones(3, 2), "alpha": torch.tensor(1.0),
    }  # fmt: skip
    parts.update(changes)
    keys = {"lora_down": "lora_down.weight", "lora_up": "lora_up.weight", "alpha": "alpha"}
    return {f"{NAME}.{keys[k]}": v for k, v in parts.items() if v is not None}


def write(path: Path, content: dict[str, torch.Tensor]) -> Path:
    save_file(content, path)
    return path


def test_lora_file_survives_a_round_trip(tmp_path: Path, make_lora: MakeLora) -> None:
    created = make_lora(["_attn", "conv1", "lora_te_"])
    path = tmp_path / "ink.safetensors"
    save_lora_file(path, created.layers, build_metadata(FACTS))
    read = load_lora_file(path)

    assert read.path == path
    assert read.layers.keys() == created.layers.keys()
    for name, layer in created.layers.items():
        assert torch.equal(read.layers[name].down, layer.down.half())
        assert torch.equal(read.layers[name].up, layer.up.half())
        assert read.layers[name].alpha == layer.alpha
    assert read.metadata["ss_output_name"] == "ink"


def test_keys_and_types_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_lora_file(path, {NAME: LoraLayer(torch.ones(2, 4), torch.ones(3, 2), 0.3)}, {})
    stored = load_file(path)
    assert {key: (t.dtype, tuple(t.shape)) for key, t in stored.items()} == {
        f"{NAME}.lora_down.weight": (torch.float16, (2, 4)),
        f"{NAME}.lora_up.weight": (torch.float16, (3, 2)),
        f"{NAME}.alpha": (torch.float32, ()),
    }


def test_missing_alpha_means_rank(tmp_path: Path) -> None:
    file = load_lora_file(write(tmp_path / "a.safetensors", tensors(alpha=None)))
    assert file.layers[NAME].alpha == 2.0


def test_metadata_is_what_other_programs_read() -> None:
    data = build_metadata(FACTS, datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert all(isinstance(value, str) for value in data.values())
    assert data["ss_base_model_version"] == "sd_v1"
    assert data["ss_v2"] == "False"
    assert (data["ss_network_dim"], data["ss_network_alpha"]) == ("4", "2")
    assert json.loads(data["ss_network_args"]) == {}
    assert json.loads(data["ss_tag_frequency"]) == {"pictures": {"inkmono style": 3, "a cat": 1}}
    assert data["modelspec.trigger_phrase"] == "inkmono"
    assert data["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert data["modelspec.prediction_type"] == "epsilon"
    assert data["modelspec.resolution"] == "128x128"
    assert data["modelspec.date"] == "2030-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("prediction", "word", "version", "architecture"),
    [
        ("epsilon", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("v_prediction", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("sample", "sample", "sd_v2", "stable-diffusion-v2-512/lora"),
    ],
)
def test_metadata_names_sd2(prediction: str, word: str, version: str, architecture: str) -> None:
    from dataclasses import replace

    data = build_metadata(replace(FACTS, family="sd2", prediction_type=prediction))
    assert data["ss_v2"] == "True"
    assert data["ss_base_model_version"] == version
    assert data["modelspec.architecture"] == architecture
    assert data["modelspec.prediction_type"] == word
    assert detect_prediction_type(LoraFile(Path("a.safetensors"), {}, data)) == prediction


def test_hash_is_of_the_tensors_not_of_the_metadata(tmp_path: Path) -> None:
    import hashlib

    layers = {NAME: LoraLayer(torch.ones(2, 4), torch.ones(3, 2), 1.0)}
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_lora_file(first, layers, {"ss_output_name": "one"})
    save_lora_file(second, layers, {"ss_output_name": "quite another name"})
    hashes = [load_lora_file(path).metadata["sshs_model_hash"] for path in (first, second)]

    raw = first.read_bytes()
    behind_header = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert hashes == [hashlib.sha256(behind_header).hexdigest()] * 2
    assert load_lora_file(first).metadata["modelspec.hash_sha256"] == f"0x{hashes[0]}"


# --- refused on reading ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_up": None}, r"lora_up\.weight is missing"),
        ({"lora_down": None}, r"lora_down\.weight is missing"),
        ({"lora_up": torch.ones(3, 4)}, "different rank"),
        ({"lora_down": torch.ones(2)}, "impossible shapes"),
        ({"alpha": torch.ones(2)}, "impossible shapes"),
        ({"lora_down": torch.full((2, 4), torch.nan)}, "not finite"),
        ({"alpha": torch.tensor(torch.inf)}, "not finite"),
    ],
)
def test_damaged_layers_are_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    path = write(tmp_path / "bad.safetensors", tensors(**changes))
    with pytest.raises(WeightsError, match=message) as caught:
        load_lora_file(path)
    assert NAME in str(caught.value)


def test_files_that_are_no_loras(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        load_lora_file(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="no tensors"):
        load_lora_file(write(tmp_path / "empty.safetensors", {}))
    torn = write(tmp_path / "torn.safetensors", tensors())
    torn.write_bytes(torn.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_lora_file(torn)
    torch.save(tensors(), tmp_path / "pickle.safetensors")
    with pytest.raises(WeightsError, match="pickled"):
        load_lora_file(tmp_path / "pickle.safetensors")


# --- refused on writing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LoraLayer(torch.ones(2, 4), torch.zeros(3, 2), 1.0), "all 1 layers are zero"),
        (LoraLayer(torch.ones(2, 4), torch.full((3, 2), torch.nan), 1.0), "not finite"),
        (LoraLayer(torch.full((2, 4), torch.inf), torch.ones(3, 2), 1.0), "not finite"),
    ],
)
def test_useless_exports_are_refused(tmp_path: Path, layer: LoraLayer, message: str) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(WeightsError, match=message):
        save_lora_file(path, {NAME: layer}, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightsError, match="all 0 layers"):
        save_lora_file(path, {}, {})


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_values_beyond_half_precision_are_saved_wider(tmp_path: Path, value: float) -> None:
    path = tmp_path / "wide.safetensors"
    layers = {NAME: LoraLayer(torch.ones(2, 4), torch.full((3, 2), value), 1.0)}
    with pytest.warns(LorasmithWarning, match="do not fit float16; saved as float32"):
        save_lora_file(path, layers, {})
    assert torch.equal(load_lora_file(path).layers[NAME].up, layers[NAME].up)


# --- other programs -------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [["_to_"], ["_to_", "ff_net", "proj_in", "proj_out"]])
def test_diffusers_reads_the_same_lora(
    tmp_path: Path, tiny_model: Path, model: Model, make_lora: MakeLora, parts: list[str]
) -> None:
    """StableDiffusionPipeline.load_lora_weights gives the same U-Net output as ours."""
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")
    from diffusers import StableDiffusionPipeline

    path = tmp_path / "ink.safetensors"
    save_lora_file(path, make_lora(parts).layers, build_metadata(FACTS), torch.float32)
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    base = output_of(theirs.unet)
    theirs.load_lora_weights(path)
    attach_lora(model, load_lora_file(path), 1.0)

    ours = output_of(model.unet)

    assert not torch.allclose(ours, base, atol=1e-2)
    torch.testing.assert_close(ours, output_of(theirs.unet), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def output_of(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 16, generator=generator)
    return unet(latents, torch.tensor([20, 800]), text, return_dict=False)[0]
