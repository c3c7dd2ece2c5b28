"""Adapters in a full network: attached, detached, several at once, and files that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import find_adaptable_layers, kohya_unet_name
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.model import Model

MakeLora = Callable[..., LoraFile]


@torch.no_grad()
def unet_output(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 16, generator=generator)
    return model.unet(latents, torch.tensor([10, 700]), text, return_dict=False)[0]


@torch.no_grad()
def text_output(model: Model) -> torch.Tensor:
    return model.text_encoder(torch.arange(77)[None] % 50).last_hidden_state


def modules_of(root: nn.Module) -> dict[str, int]:
    return {name: id(module) for name, module in root.named_modules()}


def test_detach_restores_the_same_modules_and_the_same_output(
    model: Model, make_lora: MakeLora
) -> None:
    before, text_before = unet_output(model), text_output(model)
    unet, text = modules_of(model.unet), modules_of(model.text_encoder)
    keys = list(model.unet.state_dict())

    attached = attach_lora(
        model, make_lora(["_attn", "conv1", "proj_in", "ff_net", "lora_te_"]), 1.0
    )
    assert not torch.allclose(unet_output(model), before, atol=1e-4)
    assert not torch.allclose(text_output(model), text_before, atol=1e-4)
    attached.detach()
    attached.detach()

    assert modules_of(model.unet) == unet
    assert modules_of(model.text_encoder) == text
    assert list(model.unet.state_dict()) == keys
    assert torch.equal(unet_output(model), before)
    assert torch.equal(text_output(model), text_before)


def test_weight_zero_is_bit_identical_and_weight_scales(model: Model, make_lora: MakeLora) -> None:
    before = unet_output(model)
    attached = attach_lora(model, make_lora(), 0.0)
    assert torch.equal(unet_output(model), before)

    attached.set_strength(1.0)
    full = unet_output(model)
    attached.set_strength(0.0)
    assert torch.equal(unet_output(model), before)
    attached.set_strength(1.0)
    assert torch.equal(unet_output(model), full)
    assert not torch.equal(full, before)


def test_two_loras_sum_as_their_dense_deltas(model: Model, make_lora: MakeLora) -> None:
    model.unet.double()
    lora, other = make_lora(seed=1), make_lora(["attn2", "conv2"], rank=5, seed=2)
    first, second = attach_lora(model, lora, 0.5), attach_lora(model, other, -0.8)
    combined = unet_output_double(model)
    paths = {kohya_unet_name(path): path for path in find_adaptable_layers(model.unet)}
    deltas: dict[str, torch.Tensor] = {}
    for attached, weight in ((first, 0.5), (second, -0.8)):
        for name, adapter in attached.adapters.items():
            path = paths[name]
            deltas[path] = deltas.get(path, torch.tensor(0.0)) + weight * adapter.delta_weight()
    first.detach()  # the older one first: order must not matter
    second.detach()

    for path, delta in deltas.items():
        model.unet.get_submodule(path).weight.data += delta

    torch.testing.assert_close(combined, unet_output_double(model), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def unet_output_double(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(1, 77, 16, generator=generator, dtype=torch.float64)
    return model.unet(latents, torch.tensor([300]), text, return_dict=False)[0]


def test_detaching_the_first_lora_leaves_the_second(model: Model, make_lora: MakeLora) -> None:
    other = attach_lora(model, make_lora(seed=2), 1.0)
    expected = unet_output(model)
    first = attach_lora(model, make_lora(seed=1), 1.0)
    assert not torch.equal(unet_output(model), expected)
    first.detach()
    assert torch.equal(unet_output(model), expected)
    other.detach()
    assert not any(isinstance(module, LoraWrapper) for module in model.unet.modules())


def test_names_are_found_under_adapters(model: Model, make_lora: MakeLora) -> None:
    before = list(find_adaptable_layers(model.unet).items())
    attach_lora(model, make_lora(), 1.0)
    assert list(find_adaptable_layers(model.unet).items()) == before


def test_file_that_matches_no_layer_is_refused(model: Model, make_lora: MakeLora) -> None:
    file = make_lora()
    foreign = {f"lora_unet_elsewhere_{n}": layer for n, layer in enumerate(file.layers.values())}
    with pytest.raises(WeightsError, match=f"0 of its {len(foreign)} layers exist in this model"):
        attach_lora(model, replace(file, layers=foreign), 1.0)


def test_file_with_unmatched_layers_is_refused_and_changes_nothing(
    model: Model, make_lora: MakeLora
) -> None:
    before = modules_of(model.unet)
    file = make_lora(["attn1_to_q"])
    total = len(file.layers)
    extra = {**file.layers, "lora_unet_nowhere": LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    with pytest.raises(WeightsError, match=f"{total} of its {total + 1} .*lora_unet_nowhere"):
        attach_lora(model, replace(file, layers=extra), 1.0)
    assert modules_of(model.unet) == before


def test_sdxl_files_are_recognised(model: Model) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    layer = LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    file = LoraFile(
        Path("xl.safetensors"), {name: layer}, {"ss_base_model_version": "sdxl_base_v1-0"}
    )
    with pytest.raises(WeightsError, match="made for SDXL"):
        attach_lora(model, file, 1.0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ss_base_model_version": "sd_v2"}, "made for SD 2.x, and this model is SD 1.x"),
        ({"modelspec.prediction_type": "v"}, "predict v_prediction, and this model predicts eps"),
    ],
)
def test_file_for_another_base_whose_layers_fit_is_refused(
    model: Model, make_lora: MakeLora, metadata: dict[str, str], message: str
) -> None:
    before = modules_of(model.unet)
    file = make_lora(["attn1_to_q"])
    with pytest.raises(WeightsError, match=f"its {len(file.layers)} layers exist.*{message}"):
        attach_lora(model, replace(file, metadata=metadata), 1.0)
    assert modules_of(model.unet) == before


def test_file_for_the_same_base_or_of_unknown_origin_fits(
    model: Model, make_lora: MakeLora
) -> None:
    known = {"ss_base_model_version": "sd_v1", "modelspec.prediction_type": "epsilon"}
    for metadata in (known, {"ss_base_model_version": "mine"}, {"modelspec.prediction_type": "?"}):
        assert len(attach_lora(model, replace(make_lora(["attn1_to_q"]), metadata=metadata))) > 0


def test_prediction_type_of_sd2_by_its_version(model: Model, make_lora: MakeLora) -> None:
    model.unet.register_to_config(use_linear_projection=True)  # what tells SD 2.x
    model.scheduler_config["prediction_type"] = "v_prediction"
    file = make_lora(["attn1_to_q"])
    with pytest.raises(WeightsError, match="models that predict epsilon"):
        attach_lora(model, replace(file, metadata={"ss_base_model_version": "sd_v2"}))
    assert len(attach_lora(model, replace(file, metadata={"ss_base_model_version": "sd_v2_v"}))) > 0


def test_other_widths_are_named(model: Model, make_lora: MakeLora) -> None:
    before = modules_of(model.unet)
    file = make_lora(["attn1_to_q"])
    name = next(iter(file.layers))
    wide = {**file.layers, name: LoraLayer(torch.ones(2, 320), torch.ones(320, 2), 1.0)}
    with pytest.raises(WeightsError, match=rf"{name}: down \[2, 320\].*do not fit"):
        attach_lora(model, replace(file, layers=wide), 1.0)
    assert modules_of(model.unet) == before


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_strength_that_is_not_finite_is_refused(
    model: Model, make_lora: MakeLora, weight: float
) -> None:
    before = modules_of(model.unet)
    with pytest.raises(ConfigError, match="not a finite number"):
        attach_lora(model, make_lora(), weight)
    assert modules_of(model.unet) == before


def test_bf16_model_takes_a_float32_file(model: Model, make_lora: MakeLora) -> None:
    model.to(torch.device("cpu"), torch.bfloat16)
    attached = attach_lora(model, make_lora(), 1.0)
    assert all(a.down.dtype == torch.bfloat16 for a in attached.adapters.values())
    assert not any(p.requires_grad for a in attached.adapters.values() for p in a.parameters())
