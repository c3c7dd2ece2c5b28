"""Names in files, presets, and how many layers they mean on models of true size."""

import pytest
import torch
from torch import nn

from lorasmith.adapters.layers import layer_weight
from lorasmith.adapters.names import layers_of, places_of, text_name, unet_name
from lorasmith.adapters.targets import PRESETS, select
from lorasmith.core.errors import ConfigError
from lorasmith.models.load import Model


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    """The U-Net of SD 1.5, without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def test_module_counts_of_sd15(sd15: nn.Module) -> None:
    """All layers of the transformers are 192; with resnets and samplers there are 278."""
    names = [unet_name(path) for path in layers_of(sd15)]
    outside = ("conv_in", "conv_out", "time_embedding")
    assert sum("_attentions_" in name for name in names) == 192
    assert sum(not any(part in name for part in outside) for name in names) == 278
    assert len(set(names)) == len(names)


def test_the_attention_preset_on_sd15(sd15: nn.Module) -> None:
    chosen = select(sd15, "attention")
    assert len(chosen) == 16 * 8
    assert {path.rsplit(".attn", 1)[1] for path in chosen} == {
        f"{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")
    }
    assert all(isinstance(layer, nn.Linear) for layer in chosen.values())


def test_sd15_names_are_those_of_the_convention(sd15: nn.Module) -> None:
    names = {unet_name(path) for path in layers_of(sd15)}
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    assert {
        f"{block}_attn1_to_q",
        f"{block}_attn2_to_out_0",
        f"{block}_ff_net_0_proj",
        f"{block}_ff_net_2",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_up_blocks_3_resnets_2_conv_shortcut",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_unet_up_blocks_1_upsamplers_0_conv",
        "lora_unet_mid_block_resnets_1_time_emb_proj",
    } <= names


def test_shapes_of_a_sd15_file(sd15: nn.Module) -> None:
    proj_in = sd15.get_submodule("mid_block.attentions.0.proj_in")
    assert layer_weight(proj_in).shape == (1280, 1280, 1, 1)


def test_names_lead_back_to_the_layers(model: Model) -> None:
    places = places_of(model)
    roots = {id(model.unet): unet_name, id(model.text_encoder): text_name}
    for name, place in places.items():
        assert roots[id(place.root)](place.path) == name
        assert place.root.get_submodule(place.path) is place.layer
    assert len(places) == len(layers_of(model.unet)) + len(layers_of(model.text_encoder))


def test_text_names_do_not_depend_on_the_library(model: Model) -> None:
    expected = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert text_name("encoder.layers.0.self_attn.q_proj") == expected
    assert text_name("text_model.encoder.layers.0.self_attn.q_proj") == expected
    assert expected in places_of(model)
    names = [name for name in places_of(model) if name.startswith("lora_te_")]
    assert len(names) == 2 * 6  # as 72 for the 12 layers of CLIP-L


def test_unknown_presets_name_close_matches(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: .*'atention'; did you mean attention\?"):
        select(model.unet, "atention")
    with pytest.raises(ConfigError, match="fits no layer"):
        select(nn.Linear(2, 2), "attention")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_the_tiny_model(model: Model, preset: str) -> None:
    assert select(model.unet, preset)
