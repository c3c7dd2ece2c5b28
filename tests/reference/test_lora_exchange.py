"""LoRA files to and from diffusers and PEFT: no key unused, and the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lorasmith
from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.adapters.injection.compatibility import fit_to_model
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.kinds.dora import DoraLayer
from lorasmith.adapters.naming.layer_names import find_layer_refs
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.models.model import Model

pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")

STEPS = 2
FAMILIES = {"sd1": "tiny_model", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}
TARGETS = "all-linear+conv+text-encoder"
UNEVEN = {"targets": TARGETS, "overrides": ({"targets": "mid", "rank": 6, "alpha": 9.0},)}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(FAMILIES[request.param])


def our_picture(model: Model, path: Path) -> np.ndarray:
    pipe = RecordingPipeline(model)
    attached = attach_lora(model, load_lora_file(path))
    pipe(
        "a red apple",
        seed=3,
        negative_prompt="blurry",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
    )
    attached.detach()
    return pipe.decoded[0].permute(1, 2, 0).numpy()


def their_pipe(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def their_picture(pipe: Any) -> np.ndarray:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    images = pipe(
        "a red apple", negative_prompt="blurry", latents=noise, num_inference_steps=STEPS,
        guidance_scale=4.0, output_type="np",
    ).images  # fmt: skip
    return np.asarray(images[0])


def adapted(pipe: Any) -> dict[str, Any]:
    """The layers of their networks that carry adapters, by part and path."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        f"{part}.{name}": module
        for part in ("unet", "text_encoder", "text_encoder_2")
        for name, module in getattr(getattr(pipe, part, None), "named_modules", lambda: [])()
        if isinstance(module, BaseTunerLayer)
    }


def deltas(model: Model, path: Path) -> dict[str, torch.Tensor]:
    """Return the dense change of every layer, by the layer's name."""
    fitted = fit_to_model(model, load_lora_file(path))
    return {
        fitted.refs[name].name: adapter.delta_weight() for name, adapter in fitted.adapters.items()
    }


def assert_same_delta(model: Model, first_file: Path, second_file: Path) -> None:
    first, second = deltas(model, first_file), deltas(model, second_file)
    assert first.keys() == second.keys()
    for name, delta in first.items():
        assert float((delta - second[name]).abs().max()) < 1e-6, name


def test_our_files_in_both_namings_draw_alike_everywhere(folder: Path, tmp_path: Path) -> None:
    """kohya -> diffusers -> kohya: the same change; every key used; the same image."""
    model = open_model(folder)
    kohya = make_lora(model, tmp_path / "ink.safetensors", UNEVEN, 0.2)
    theirs, back = tmp_path / "diffusers.safetensors", tmp_path / "back.safetensors"
    lorasmith.convert_lora(kohya, theirs, "diffusers")
    lorasmith.convert_lora(theirs, back, "kohya")

    assert {key.split(".lora_")[1] for key in load_file(theirs)} == {"A.weight", "B.weight"}
    assert load_file(back).keys() == load_file(kohya).keys()
    for path in (theirs, back):
        assert_same_delta(model, kohya, path)
        np.testing.assert_allclose(our_picture(model, path), our_picture(model, kohya), atol=1e-4)

    pipe = their_pipe(folder)
    plain = their_picture(pipe)
    pipe.load_lora_weights(theirs)
    assert len(adapted(pipe)) == len(load_lora_file(kohya).layers), "no key is left unused"
    drawn = their_picture(pipe)
    assert abs(drawn - plain).max() > 0.01
    np.testing.assert_allclose(drawn, our_picture(model, kohya), atol=1e-4)


def test_kohya_files_leave_no_key_unused_in_diffusers(tiny_sdxl: Path, tmp_path: Path) -> None:
    """In sgm's names; integration tests compare the images."""
    folder, model = tiny_sdxl, open_model(tiny_sdxl)
    path = make_lora(model, tmp_path / "ink.safetensors", {"targets": TARGETS}, 0.2)
    pipe = their_pipe(folder)
    pipe.load_lora_weights(path)
    assert len(adapted(pipe)) == len(load_lora_file(path).layers)


@pytest.mark.parametrize(
    ("family", "dora"), [("sd1", False), ("sd2", True), ("sdxl", False), ("sdxl", True)]
)
def test_files_of_diffusers_draw_here_as_there(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, dora: bool
) -> None:
    """Adapters of PEFT in diffusers, saved by diffusers, with convolutions and text encoders."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    folder = request.getfixturevalue(FAMILIES[family])
    pipe, model = their_pipe(folder), open_model(folder)
    torch.manual_seed(0)
    unet = ["to_q", "to_k", "to_out.0", "conv1", "ff.net.2"]
    plan = {"unet": unet, "text_encoder": ["q_proj", "fc1"]}
    if model.text_encoder_2 is not None:
        plan["text_encoder_2"] = ["out_proj", "fc2"]
    states, metadata = {}, {}
    for part, targets in plan.items():
        network = getattr(pipe, part)
        config = LoraConfig(
            r=4, lora_alpha=6, target_modules=targets, use_dora=dora, init_lora_weights=False,
            alpha_pattern={targets[0]: 2},
        )  # fmt: skip
        network.add_adapter(config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_magnitude" in name:
                    parameter *= 1 + 0.2 * torch.rand_like(parameter)
        state = get_peft_model_state_dict(network)
        states[part] = state if part == "unet" else convert_state_dict_to_diffusers(state)
        metadata[part] = config.to_dict()
    pipe.save_lora_weights(
        tmp_path,
        **{f"{part}_lora_layers": state for part, state in states.items()},
        **{f"{part}_lora_adapter_metadata": entries for part, entries in metadata.items()},
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    file = load_lora_file(path)
    spellings = {key.split(".")[-3] + "." + key.split(".")[-2] for key in load_file(path)}
    assert len(spellings) > 1, "diffusers mixes names of factors"
    assert len(file.layers) == len(adapted(pipe))
    assert any(isinstance(layer, DoraLayer) for layer in file.layers.values()) == dora
    np.testing.assert_allclose(our_picture(model, path), their_picture(pipe), atol=1e-4)

    kohya = tmp_path / "kohya.safetensors"
    lorasmith.convert_lora(path, kohya)
    assert_same_delta(model, path, kohya)


def test_dora_survives_conversion_to_diffusers_and_back(tiny_model: Path, tmp_path: Path) -> None:
    model = open_model(tiny_model)
    kohya = make_lora(model, tmp_path / "ink.safetensors", {"targets": "attention+conv"}, 0.1)
    file = load_lora_file(kohya)
    torch.manual_seed(1)
    refs = find_layer_refs(model)
    layers = {
        name: DoraLayer(
            layer,
            layer_weight(refs[name].layer).flatten(1).norm(dim=1)
            * (0.8 + 0.4 * torch.rand(len(layer.up))),
            on_input=False,
        )
        for name, layer in file.layers.items()
    }
    dora, theirs = tmp_path / "dora.safetensors", tmp_path / "theirs.safetensors"
    save_lora_file(dora, layers, file.metadata, torch.float32)
    lorasmith.convert_lora(dora, theirs, "diffusers")
    assert_same_delta(model, dora, theirs)
    name, layer = next(iter(layers.items()))
    expected = layer.delta_for(layer_weight(refs[name].layer))
    torch.testing.assert_close(deltas(model, theirs)[name], expected)
    pipe = their_pipe(tiny_model)
    pipe.load_lora_weights(theirs)
    np.testing.assert_allclose(their_picture(pipe), our_picture(model, dora), atol=1e-4)


def test_files_are_exchanged_with_peft(tiny_model: Path, tmp_path: Path) -> None:
    """`save_pretrained` of a PEFT model is read here; ours is loaded by PEFT without a key left."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    network = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    torch.manual_seed(0)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "conv2"], init_lora_weights=False
    )
    theirs = get_peft_model(network, config)
    theirs.save_pretrained(tmp_path / "peft")
    inputs = (
        torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 77, 16),
    )  # fmt: skip
    model = open_model(tiny_model)
    path = tmp_path / "peft" / "adapter_model.safetensors"
    attached = attach_lora(model, load_lora_file(path))
    assert len(attached) == sum(key.endswith("lora_A.weight") for key in load_file(path))
    with torch.no_grad():
        expected, ours = theirs(*inputs).sample, model.unet(*inputs).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    attached.detach()

    converted = tmp_path / "ours.safetensors"
    lorasmith.convert_lora(path, converted, "diffusers")
    state = {
        f"base_model.model.{key.removeprefix('unet.')}": tensor
        for key, tensor in load_file(converted).items()
    }
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    result = set_peft_model_state_dict(theirs, state)
    assert result.unexpected_keys == []
    with torch.no_grad():
        torch.testing.assert_close(theirs(*inputs).sample, expected)


def test_folded_alphas_are_the_ranks(tiny_model: Path, tmp_path: Path) -> None:
    model = open_model(tiny_model)
    kohya = make_lora(model, tmp_path / "ink.safetensors", UNEVEN, 0.2)
    folded = tmp_path / "folded.safetensors"
    lorasmith.convert_lora(kohya, folded, "diffusers", fold_alpha=True)
    assert all(layer.alpha == layer.rank for layer in load_lora_file(folded).layers.values())
    assert_same_delta(model, kohya, folded)


def test_metadata_survive_and_name_the_family(tiny_sdxl: Path, tmp_path: Path) -> None:
    model = open_model(tiny_sdxl)
    kohya = make_lora(model, tmp_path / "ink.safetensors", {"targets": "attention"}, 0.2)
    theirs, back = tmp_path / "diffusers.safetensors", tmp_path / "back.safetensors"
    lorasmith.convert_lora(kohya, theirs, "diffusers")
    lorasmith.convert_lora(theirs, back)
    before, after = load_lora_file(kohya).metadata, load_lora_file(back).metadata
    assert after == before
    with safe_open(theirs, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "unet.lora_alpha" in metadata["lora_adapter_metadata"]
