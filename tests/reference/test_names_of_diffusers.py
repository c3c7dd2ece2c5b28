"""Every module of SD 1.5, SDXL and its refiner has its name in kohya's and diffusers' files.

The counts are those of the published conventions; the U-Nets have their true sizes, without
memory for weights. diffusers' own conversion reads the names as the modules that we mean.
"""

import pytest
import torch

from helpers.published_sizes import networks
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.layer_names import find_adaptable_layers, kohya_unet_name
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.registries import MODEL_FAMILIES

OUTSIDE = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")
COUNTS = {
    "sd15": ("sd1", 192, 278),
    "sdxl": ("sdxl", 722, 788),
    "refiner": ("sdxl-refiner", 462, 548),
}


def unet_of(name: str) -> torch.nn.Module:
    if name != "refiner":
        return networks(name).unet
    from diffusers import UNet2DConditionModel

    lora_metadata = MODEL_FAMILIES.get("sdxl-refiner").unet
    kinds = ["CrossAttn" if depth else "" for depth in lora_metadata.transformer_layers]
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=lora_metadata.channels,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            transformer_layers_per_block=tuple(
                depth or 4 for depth in lora_metadata.transformer_layers
            ),
            attention_head_dim=(6, 12, 24, 24),
            cross_attention_dim=lora_metadata.cross_attention_dim,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2560,
        )


@pytest.mark.parametrize("name", COUNTS)
def test_every_unet_module_maps_and_maps_back(name: str) -> None:
    family, attention, all_layers = COUNTS[name]
    paths = [path for path in find_adaptable_layers(unet_of(name)) if not path.startswith(OUTSIDE)]
    assert sum(".attentions." in f".{path}" for path in paths) == attention
    assert len(paths) == all_layers
    names = set()
    for path in paths:
        module = LayerPath("unet", path)
        kohya = module.kohya_name(family)
        names.add(kohya)
        assert parse_layer_name(kohya) == module
        assert parse_layer_name(kohya_unet_name(path)) == module, "diffusers' order of blocks"
        assert parse_layer_name(module.diffusers_name) == module
        assert parse_layer_name(path) == module
    assert len(names) == all_layers
    sgm = family != "sd1"
    started = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
    assert all(name.startswith(started) for name in names) == sgm


@pytest.mark.parametrize(("part", "count"), [("text_encoder", 72), ("text_encoder_2", 192)])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_module_of_the_text_encoders_has_a_name(part: str, count: int, family: str) -> None:
    if family == "sd1" and part == "text_encoder_2":
        return
    encoder = getattr(networks("sdxl"), part)
    paths = [path for path in find_adaptable_layers(encoder) if "encoder.layers." in path]
    assert len(paths) == count
    prefix = {"sd1": "lora_te_", "sdxl": "lora_te1_" if part == "text_encoder" else "lora_te2_"}
    for path in paths:
        module = LayerPath(part, path.removeprefix("text_model."))
        kohya = module.kohya_name(family)
        assert kohya.startswith(f"{prefix[family]}text_model_encoder_layers_")
        assert parse_layer_name(kohya) == module
        assert module.diffusers_name.startswith(f"{part}.text_model.encoder.layers.")
        assert parse_layer_name(module.diffusers_name) == module


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_diffusers_reads_kohyas_names_as_the_modules_that_we_mean(name: str) -> None:
    """Each file name, through diffusers' own tables, comes out as the module's path."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    family = COUNTS[name][0]
    unet = unet_of(name)
    paths = [path for path in find_adaptable_layers(unet) if not path.startswith(OUTSIDE)]
    empty = torch.empty(0, device="meta")
    layer = LoraLayer(empty, empty, 1.0)
    state = {
        f"{LayerPath('unet', path).kohya_name(family)}.{suffix}": tensor
        for path in paths
        for suffix, tensor in layer.tensors().items()
    }
    if family == "sdxl":
        state = _maybe_map_sgm_blocks_to_diffusers(state, unet.config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
    weights = {key.removeprefix("unet."): tensor for key, tensor in converted.items()}
    read = {key.split(".lora_")[0] for key in convert_unet_state_dict_to_peft(weights)}
    assert read == set(paths)
