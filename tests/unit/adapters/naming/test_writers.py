"""Every program's spelling of every layer of every family means that layer.

The spellings are built from diffusers' module paths, and from the original code's names by the
tables with which models are converted (which `tests/reference` compares with diffusers).
"""

from collections.abc import Callable
from functools import cache

import pytest

from helpers.published_sizes import networks
from lorasmith.adapters.naming.layer_names import find_layer_refs
from lorasmith.adapters.naming.parse_layer_name import LayerPath, is_kohya_name, parse_layer_name
from lorasmith.models.families.family import detect_family
from lorasmith.models.families.ldm_keys import unet_table

FAMILIES = ("sd15", "sd21", "sdxl", "refiner")
COMFY_ENCODERS = {
    "sd15": {"text_encoder": "clip_l"},
    "sd21": {"text_encoder": "clip_h"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "refiner": {"text_encoder_2": "clip_g"},
}
Spell = Callable[[str, str, str, str], str | None]
"""From family, part, diffusers path (with `text_model`) and the original name to a name."""


def text_level(path: str) -> str:
    return path if path.startswith(("text_model", "text_projection")) else f"text_model.{path}"


@cache
def modules(family: str) -> dict[LayerPath, tuple[str, str, str]]:
    """Return each layer's diffusers path, original name (of the U-Net) and kohya name."""
    model = networks(family)
    table = unet_table(model.unet.config)
    layers = {}
    for kohya, ref in find_layer_refs(model).items():
        is_unet = ref.part == "unet"
        ldm = table.to_ldm(f"{ref.path}.weight") if is_unet else None
        assert ldm or not is_unet, ref.path
        path = ref.path if is_unet else text_level(ref.path)
        ldm = (ldm or "").removesuffix(".weight")
        layers[LayerPath(ref.part, ref.path.removeprefix("text_model."))] = path, ldm, kohya
    return layers


def under(text: str) -> str:
    return text.replace(".", "_")


def kohya_prefix(family: str, part: str, start: str = "lora") -> str:
    numbered = {"text_encoder": "te1", "text_encoder_2": "te2"}
    plain = {"text_encoder": "te"}
    return f"{start}_{({'unet': 'unet'} | (numbered if 'xl' in family or family == 'refiner' else plain))[part]}_"  # noqa: E501


def early_diffusers(family: str, part: str, path: str, ldm: str) -> str:
    """`load_attn_procs` of 2023."""
    if part != "unet":
        for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v")):
            path = path.replace(f"self_attn.{new}", f"self_attn.{old}")
        return f"{part}.{path.replace('self_attn.out_proj', 'self_attn.to_out')}"
    for layer in ("attn1", "attn2"):
        path = path.replace(f".{layer}.to_", f".{layer}.processor.to_")
    return f"unet.{path.replace('to_out.0', 'to_out')}"


def only_unet(spell: Callable[[str, str], str]) -> Spell:
    return lambda family, part, path, ldm: spell(path, ldm) if part == "unet" else None


WRITERS: dict[str, Spell] = {
    "kohya and ai-toolkit": lambda f, part, path, ldm: kohya_prefix(f, part) + under(path),
    "kohya of SDXL (sgm)": lambda f, part, path, ldm: kohya_prefix(f, part) + under(ldm or path),
    "LyCORIS": only_unet(lambda path, ldm: f"lycoris_{under(path)}"),
    "LyCORIS on the original code": only_unet(lambda path, ldm: f"lycoris_{under(ldm)}"),
    "LyCORIS with parts": lambda f, part, path, ldm: kohya_prefix(f, part, "lycoris") + under(path),
    "diffusers and SimpleTuner": lambda f, part, path, ldm: f"{part}.{path}",
    "diffusers with transformers 5": (
        lambda f, part, path, ldm: f"{part}.{path.removeprefix('text_model.')}"
    ),
    "diffusers' scripts of 2023": lambda f, part, path, ldm: (
        f"unet.unet.{path}" if part == "unet" else f"{part}.{path}"
    ),
    "early diffusers": early_diffusers,
    "diffusers without a prefix": only_unet(lambda path, ldm: path),
    "PEFT": only_unet(lambda path, ldm: f"base_model.model.{path}"),
    "PEFT in diffusers": lambda f, part, path, ldm: f"{part}.base_model.model.{path}",
    "ComfyUI and OneTrainer's COMFY_LORA": lambda f, part, path, ldm: (
        f"diffusion_model.{ldm}"
        if part == "unet"
        else f"text_encoders.{COMFY_ENCODERS[f][part]}.transformer.{path}"
    ),
    "OneTrainer's OMI": lambda f, part, path, ldm: (
        f"unet.{ldm}" if part == "unet" else f"{COMFY_ENCODERS[f][part]}.{path}"
    ),
    "OneTrainer's backups": lambda f, part, path, ldm: (
        f"{kohya_prefix(f, part).removesuffix('_')}.{path}"
    ),
    "the original code": only_unet(lambda path, ldm: f"model.diffusion_model.{ldm}"),
    "the original code without a prefix": only_unet(lambda path, ldm: ldm),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("writer", WRITERS)
def test_spelling_means_its_layer(writer: str, family: str) -> None:
    name = detect_family(networks(family)).name
    count = 0
    for layer, (path, ldm, kohya) in modules(family).items():
        spelled = WRITERS[writer](family, layer.part, path, ldm)
        if spelled is None:
            continue
        assert parse_layer_name(spelled) == layer, spelled
        assert parse_layer_name(spelled).kohya_name(name) == kohya
        count += 1
    # All layers of the U-Net, among them those outside of its blocks.
    assert count >= {"sd15": 282, "sd21": 282, "sdxl": 794, "refiner": 554}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_layers_are_kohyas_own(family: str) -> None:
    for _, _, kohya in modules(family).values():
        assert is_kohya_name(kohya)


def test_other_spellings_are_not_kohyas_own() -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out"
    for name in (f"lora_unet_{under(path)}", f"lycoris_{under(path)}_0", f"unet.{path}.0", "x"):
        assert not is_kohya_name(name)


def test_refiner_s_encoder_may_be_counted_from_one() -> None:
    inner = "text_model_encoder_layers_0_mlp_fc1"
    for prefix in ("lora_te_", "lora_te1_", "lora_te2_"):
        layer = parse_layer_name(prefix + inner)
        assert layer is not None
        assert layer.kohya_name("sdxl-refiner") == f"lora_te2_{inner}"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "sd1"),
        ("lora_unet_down_blocks_4_resnets_0_conv1", "sd1"),
        ("lora_unet_down_blocks_3_attentions_7_proj_in", "sdxl"),
        ("lora_unet_input_blocks_11_1_proj_in", "sdxl"),
    ],
)
def test_layer_that_a_family_does_not_have(name: str, family: str) -> None:
    layer = parse_layer_name(name)
    assert layer is not None
    with pytest.raises(KeyError):
        layer.kohya_name(family)


@pytest.mark.parametrize(
    "name",
    [
        "unet.text_encoder.text_model.encoder.layers.0.mlp.fc1",  # contradicts itself
        "lora_unet_down_blocks_00_resnets_0_conv1",  # a second spelling of 0
        "lora_unet_input_blocks_0_1_proj_in",
        "lora_unet_down_blocks_٣_resnets_0_conv1",
        "lora_unet_conv",
        "lora_te_conv_in",
        "lora_unet_encoder_layers_0_mlp_fc1",
        f"lora_unet_down_blocks_0_{'resnets_0_' * 40}conv1",
        "",
        ".",
        "lora_unet_",
    ],
)
def test_name_that_means_no_layer(name: str) -> None:
    assert parse_layer_name(name) is None
