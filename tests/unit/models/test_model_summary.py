import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.published_sizes import UNETS
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.load import load_model
from lorasmith.models.model_summary import (
    LAYER_TYPES,
    count_by_layer_type,
    count_lora_parameters,
    estimate_lora_costs,
    summarize_model,
)
from lorasmith.models.unet_tree import UnetNode, build_unet_tree, count_parameters

SD15, SDXL = UNETS["sd15"], UNETS["sdxl"]
# Parameters of the published models; layers that sd-scripts adapts without and with conv.
KNOWN = [(SD15, 859_520_964, 192, 278), (SDXL, 2_567_463_684, 722, 788)]


def unet_of(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def flat(node: UnetNode) -> list[UnetNode]:
    return [node, *(below for child in node.children for below in flat(child))]


@pytest.mark.parametrize(("config", "parameters", "linear", "with_conv"), KNOWN)
def test_published_models_are_summarized(
    config: dict, parameters: int, linear: int, with_conv: int
) -> None:
    unet = unet_of(config)
    tree, shares = build_unet_tree(unet), count_by_layer_type(unet)
    assert tree.parameters == parameters
    assert sum(share.parameters for share in shares) == parameters
    assert sum(share.share for share in shares) == pytest.approx(1.0)
    costs = {cost.name: cost for cost in estimate_lora_costs(unet, [], 16)}
    assert costs["transformers"].layers == linear
    assert costs["transformers, resnets and samplers"].layers == with_conv


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["SD1.5", "SDXL"])
def test_children_of_every_node_add_up(config: dict) -> None:
    for node in flat(build_unet_tree(unet_of(config))):
        if node.children:
            assert sum(child.parameters for child in node.children) == node.parameters, node.path


def test_blocks_have_the_names_of_block_vectors() -> None:
    nodes = {node.path: node.block for node in flat(build_unet_tree(unet_of(SD15))) if node.block}
    assert nodes["conv_in"] == "IN00"
    assert nodes["down_blocks.0.attentions.0"] == "IN01"
    assert nodes["down_blocks.2.downsamplers.0"] == "IN09"
    assert nodes["down_blocks.3.resnets.1"] == "IN11"
    assert nodes["mid_block.attentions.0"] == "MID"
    assert nodes["up_blocks.1.attentions.0"] == "OUT03"
    assert nodes["up_blocks.3.attentions.2"] == "OUT11"
    attention = sorted({block for path, block in nodes.items() if path.count(".attentions.")})
    # The 17-value vector without BASE.
    inward = [f"IN{n:02d}" for n in (1, 2, 4, 5, 7, 8)]
    assert attention == [*inward, "MID", *(f"OUT{n:02d}" for n in range(3, 12))]


def test_nodes_note_where_text_and_time_enter() -> None:
    nodes = flat(build_unet_tree(unet_of(SDXL)))
    assert all(node.note == "time 1280 after conv1" for node in nodes if node.kind == "resnet")
    cross = [node for node in nodes if node.kind == "cross-attention"]
    assert len(cross) == 11
    assert all(node.note == "text at k, v" for node in cross)
    assert all("k v 2048" in node.detail for node in cross)
    assert any(node.path.endswith("attentions.0.transformer_blocks.0-9.attn2") for node in cross)


def test_lora_cost_counts_its_factors() -> None:
    linear, conv = torch.nn.Linear(10, 30), torch.nn.Conv2d(4, 6, 3)
    assert count_lora_parameters(linear, 2) == 2 * 10 + 30 * 2
    assert count_lora_parameters(conv, 2) == 2 * 4 * 9 + 6 * 2
    (cost, *_) = estimate_lora_costs(unet_of(SD15), [], 4)
    assert cost.name == "attn1"
    assert cost.reduction == pytest.approx(cost.weights / cost.lora)


def test_folder_is_summarized(tiny_model: Path) -> None:
    parts, model = summarize_model(tiny_model, rank=4), load_model(tiny_model)
    assert parts.unet.parameters == sum(p.numel() for p in model.unet.parameters())
    assert parts.vae["parameters"] == sum(p.numel() for p in model.vae.parameters())
    assert parts.text[0]["parameters"] == sum(p.numel() for p in model.text_encoder.parameters())
    assert parts.parameters == sum(
        count_parameters(m) for m in (model.unet, model.vae, model.text_encoder)
    )
    assert parts.scheduler["prediction_type"] == "epsilon"
    assert [cost.name for cost in parts.lora][: len(LAYER_TYPES)] == list(LAYER_TYPES)
    assert parts.lora[-1].layers == 2 * 6  # two text layers: q, k, v, out, fc1, fc2


def test_second_text_encoder_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    path = folder / "text_encoder_2" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 16}
    path.write_text(json.dumps(config), encoding="utf-8")
    parts = summarize_model(folder, rank=4)
    first, second = (int(text["parameters"]) for text in parts.text)
    assert second == first + 16 * 16
    assert parts.lora[-1].layers == 2 * 2 * 6  # the projection is left alone


def test_bad_models_and_ranks_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^lora: rank 0"):
        summarize_model(tiny_model, rank=0)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "unet" / "config.json"
    for text, message in (
        ("{", "unet/config.json cannot be read"),
        ("[]", "not a JSON object"),
        (json.dumps({"_class_name": "FluxTransformer2DModel"}), "unet is a FluxTransformer2DModel"),
        (json.dumps({"block_out_channels": [8, 8]}), "unet/config.json does not fit"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(WeightsError, match=message):
            summarize_model(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=r"unet/config\.json is missing"):
        summarize_model(folder)
