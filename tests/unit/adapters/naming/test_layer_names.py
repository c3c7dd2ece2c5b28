"""Layer names and presets, and how many layers they match on models of published sizes."""

import pytest
from torch import nn

from helpers.published_sizes import networks
from lorasmith.adapters.naming.layer_names import (
    find_adaptable_layers,
    find_layer_refs,
    find_name_aliases,
    kohya_text_name,
    kohya_unet_name,
)
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.adapters.nn.lora import layer_weight
from lorasmith.models.families.family import detect_family
from lorasmith.models.model import Model


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    return networks("sd15").unet


def test_module_counts_are_those_of_sd15(sd15: nn.Module) -> None:
    """All layers of the transformers are 192; with resnets and samplers there are 278."""
    names = [kohya_unet_name(path) for path in find_adaptable_layers(sd15)]
    outside = ("conv_in", "conv_out", "time_embedding")
    assert sum("_attentions_" in name for name in names) == 192
    assert sum(not any(part in name for part in outside) for name in names) == 278
    assert len(set(names)) == len(names)


def test_sd15_names_are_those_of_the_convention(sd15: nn.Module) -> None:
    names = {kohya_unet_name(path) for path in find_adaptable_layers(sd15)}
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


def test_shapes_are_those_of_a_sd15_file(sd15: nn.Module) -> None:
    proj_in = sd15.get_submodule("mid_block.attentions.0.proj_in")
    assert layer_weight(proj_in).shape == (1280, 1280, 1, 1)


def test_names_lead_back_to_the_layers(model: Model) -> None:
    refs = find_layer_refs(model)
    roots = {id(model.unet): kohya_unet_name, id(model.text_encoder): kohya_text_name}
    for name, ref in refs.items():
        assert roots[id(ref.network)](ref.path) == name
        assert ref.network.get_submodule(ref.path) is ref.layer
    assert len(refs) == len(find_adaptable_layers(model.unet)) + len(
        find_adaptable_layers(model.text_encoder)
    )


def test_text_names_do_not_depend_on_the_library(model: Model) -> None:
    expected = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert kohya_text_name("encoder.layers.0.self_attn.q_proj") == expected
    assert kohya_text_name("text_model.encoder.layers.0.self_attn.q_proj") == expected
    assert expected in find_layer_refs(model)
    names = [name for name in find_layer_refs(model) if name.startswith("lora_te_")]
    assert len(names) == 2 * 6  # as 72 for the 12 layers of CLIP-L


XL_NAMES = {
    "conv_in": "input_blocks_0_0",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": (
        "input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    ),
    "down_blocks.1.downsamplers.0.conv": "input_blocks_6_0_op",
    "down_blocks.2.attentions.1.proj_out": "input_blocks_8_1_proj_out",
    "mid_block.resnets.0.conv2": "middle_block_0_out_layers_3",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": (
        "middle_block_1_transformer_blocks_9_ff_net_0_proj"
    ),
    "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
    "up_blocks.0.attentions.2.proj_in": "output_blocks_2_1_proj_in",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
        "output_blocks_3_1_transformer_blocks_0_attn2_to_out_0"
    ),
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "conv_out": "out_2",
}


@pytest.mark.parametrize(("path", "expected"), XL_NAMES.items())
def test_sdxl_layers_have_sgm_names(path: str, expected: str) -> None:
    names = {ref.path: name for name, ref in find_layer_refs(networks("sdxl")).items()}
    assert names[path] == f"lora_unet_{expected}"


def test_name_counts_are_those_of_sdxl() -> None:
    names = list(find_layer_refs(networks("sdxl")))
    unet = [n for n in names if n.startswith(("lora_unet_input", "lora_unet_mid", "lora_unet_out"))]
    sgm = [n for n in unet if n not in ("lora_unet_input_blocks_0_0", "lora_unet_out_2")]
    assert len(sgm) == len(set(sgm)) == 788
    assert sum("_transformer_blocks_" in n or "_proj_" in n.split("blocks")[-1] for n in sgm) == 722
    layers = "_text_model_encoder_layers_"
    assert sum(name.startswith(f"lora_te1{layers}") for name in names) == 72
    assert sum(name.startswith(f"lora_te2{layers}") for name in names) == 192
    assert f"lora_te2{layers}31_mlp_fc2" in names


def test_diffusers_names_of_sdxl_are_known_too() -> None:
    model = networks("sdxl")
    refs, other = find_layer_refs(model), find_name_aliases(model)
    name = "lora_unet_up_blocks_0_attentions_0_transformer_blocks_3_attn2_to_k"
    assert other[name] == "lora_unet_output_blocks_0_1_transformer_blocks_3_attn2_to_k"
    assert set(other.values()) <= refs.keys()
    assert len(other) == len(find_adaptable_layers(model.unet)) + len(
        find_adaptable_layers(model.text_encoder)
    )


def test_first_text_encoder_may_have_a_number_or_none() -> None:
    """diffusers numbers the only encoder of SD 1.x; its own naming has no numbers at all."""
    inner = "text_model_encoder_layers_0_self_attn_q_proj"
    assert find_name_aliases(networks("sdxl"))[f"lora_te_{inner}"] == f"lora_te1_{inner}"
    assert find_name_aliases(networks("sd15"))[f"lora_te1_{inner}"] == f"lora_te_{inner}"


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_names_lead_to_layers_and_back_without_a_model(name: str) -> None:
    model = networks(name)
    for kohya, ref in find_layer_refs(model).items():
        module = parse_layer_name(kohya)
        assert module == LayerPath(ref.part, ref.path.removeprefix("text_model."))
        assert module.kohya_name(detect_family(model).name) == kohya
        assert parse_layer_name(module.diffusers_name) == module
        assert parse_layer_name(module.kohya_name(None)) == module, "diffusers' order is read too"


def test_names_of_blocks_are_those_of_the_tree() -> None:
    """`model info` and the adapters agree on IN04, MID and OUT05."""
    from lorasmith.models.unet_tree import UnetNode, build_unet_tree

    def flat(node: UnetNode) -> list[UnetNode]:
        return [node, *(below for child in node.children for below in flat(child))]

    for model in ("sd15", "sdxl"):
        blocks = {ref.path: ref.block for ref in find_layer_refs(networks(model)).values()}
        for node in flat(build_unet_tree(networks(model).unet)):
            inside = [b for path, b in blocks.items() if path.startswith(f"{node.path}.")]
            if node.block and inside:
                assert set(inside) == {node.block}, node.path
