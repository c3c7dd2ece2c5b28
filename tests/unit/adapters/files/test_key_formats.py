"""All key formats of LoRA files give the same layers, and other files are described."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file
from lorasmith.adapters.files.unknown_keys import is_for_later_family
from lorasmith.adapters.kinds.dora import DoraLayer
from lorasmith.adapters.kinds.full import FullLayer
from lorasmith.adapters.naming.parse_layer_name import parse_layer_name
from lorasmith.core.errors import WeightsError

Tensors = dict[str, torch.Tensor]
UNET = "down_blocks.0.attentions.1.transformer_blocks.0"
KOHYA = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0"
TEXT = "text_model.encoder.layers.3"
TO_OUT, FF = f"{KOHYA}_attn1_to_out_0", f"{KOHYA}_ff_net_0_proj"
OUT_PROJ, FC1 = (
    f"lora_te_text_model_encoder_layers_3_{n}" for n in ("self_attn_out_proj", "mlp_fc1")
)

SPELLINGS = {
    "kohya": (TO_OUT, FF, OUT_PROJ, FC1, ".lora_down.weight", ".lora_up.weight"),
    "diffusers": (
        f"unet.{UNET}.attn1.to_out.0", f"unet.{UNET}.ff.net.0.proj",
        f"text_encoder.{TEXT}.self_attn.out_proj", f"text_encoder.{TEXT}.mlp.fc1",
        ".lora_A.weight", ".lora_B.weight",
    ),
    "diffusers of transformers 5": (
        f"unet.{UNET}.attn1.to_out.0", f"unet.{UNET}.ff.net.0.proj",
        "text_encoder.encoder.layers.3.self_attn.out_proj", "text_encoder.encoder.layers.3.mlp.fc1",
        ".lora_A.default.weight", ".lora_B.default.weight",
    ),
    "lora.down": (
        f"unet.{UNET}.attn1.to_out.0", f"unet.{UNET}.ff.net.0.proj",
        f"text_encoder.{TEXT}.self_attn.out_proj", f"text_encoder.{TEXT}.mlp.fc1",
        ".lora.down.weight", ".lora.up.weight",
    ),
    "lora_linear_layer": (
        f"unet.{UNET}.attn1.to_out.0", f"unet.{UNET}.ff.net.0.proj",
        f"text_encoder.{TEXT}.self_attn.out_proj", f"text_encoder.{TEXT}.mlp.fc1",
        ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight",
    ),
    "load_attn_procs": (
        f"{UNET}.attn1.processor.to_out", f"{UNET}.ff.net.0.proj",
        f"text_encoder.{TEXT}.self_attn.to_out", f"text_encoder.{TEXT}.mlp.fc1",
        "_lora.down.weight", "_lora.up.weight",
    ),
    "LyCORIS's own prefix": (
        TO_OUT.replace("lora_unet", "lycoris"), FF.replace("lora_unet", "lycoris"), OUT_PROJ, FC1,
        ".lora_down.weight", ".lora_up.weight",
    ),
    "the original model's names": (
        "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_out.0",
        "diffusion_model.input_blocks.2.1.transformer_blocks.0.ff.net.0.proj",
        f"text_encoder.{TEXT}.self_attn.out_proj", f"text_encoder.{TEXT}.mlp.fc1",
        ".lora_down.weight", ".lora_up.weight",
    ),
}  # fmt: skip


def factors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 8, generator=generator), torch.randn(6, 3, generator=generator)


def keys_in(key_format: str) -> Tensors:
    *names, down, up = SPELLINGS[key_format]
    return {
        f"{name}{end}": factor
        for index, name in enumerate(names)
        for end, factor in zip((down, up), factors(index), strict=True)
    }


def read(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> LoraFile:
    path = folder / "some.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return load_lora_file(path)


@pytest.mark.parametrize("key_format", SPELLINGS)
def test_every_key_format_gives_the_same_layers(tmp_path: Path, key_format: str) -> None:
    file = read(tmp_path, keys_in(key_format))
    assert sorted(file.layers) == sorted([TO_OUT, FF, OUT_PROJ, FC1])
    for index, name in enumerate([TO_OUT, FF, OUT_PROJ, FC1]):
        down, up = factors(index)
        assert torch.equal(file.layers[name].down, down)
        assert torch.equal(file.layers[name].up, up)
        assert file.layers[name].alpha == 3.0, "a missing alpha is the rank"


def test_file_may_mix_key_formats(tmp_path: Path) -> None:
    kohya, diffusers = keys_in("lora.down"), keys_in("diffusers")
    mixed = {key: t for key, t in kohya.items() if "attn" in key}
    mixed |= {key: t for key, t in diffusers.items() if "attn" not in key}
    file = read(tmp_path, mixed)
    assert len(file.layers) == 4
    assert file.key_formats == ("early diffusers", "diffusers") or set(file.key_formats) == {
        "early diffusers", "diffusers",
    }  # fmt: skip


def test_layer_in_two_key_formats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is in it twice, in two key formats"):
        read(tmp_path, keys_in("kohya") | keys_in("diffusers"))


def test_alphas_are_read_from_diffusers_metadata(tmp_path: Path) -> None:
    entries = {
        "unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"ff.net.0.proj": 1.5},
        "text_encoder.r": 3, "text_encoder.lora_alpha": 2, "text_encoder.use_rslora": True,
        "text_encoder.alpha_pattern": {},
    }  # fmt: skip
    metadata = {"lora_adapter_metadata": json.dumps(entries)}
    file = read(tmp_path, keys_in("diffusers"), metadata)
    alphas = {name: layer.alpha for name, layer in file.layers.items()}
    text = pytest.approx(2 * 3**0.5)
    assert alphas == {TO_OUT: 6.0, FF: 1.5, OUT_PROJ: text, FC1: text}


@pytest.mark.parametrize("entry", ["{", "[1]", '{"unet.lora_alpha": "much"}'])
def test_damaged_metadata_of_diffusers_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(WeightsError, match="lora_adapter_metadata: "):
        read(tmp_path, keys_in("diffusers"), {"lora_adapter_metadata": entry})


def test_file_of_peft_needs_its_settings(tmp_path: Path) -> None:
    tensors = {
        f"base_model.model.{key.removeprefix('unet.')}": tensor
        for key, tensor in keys_in("diffusers").items()
        if key.startswith("unet.")
    }
    with pytest.raises(WeightsError, match=r"keeps its alpha in adapter_config.json beside it"):
        read(tmp_path, tensors)
    settings = {"r": 3, "lora_alpha": 1.5, "alpha_pattern": {}, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    file = read(tmp_path, tensors)
    assert {name: layer.alpha for name, layer in file.layers.items()} == {TO_OUT: 1.5, FF: 1.5}


@pytest.mark.parametrize(
    ("key", "shape", "on_input"),
    [
        (f"{KOHYA}_attn2_to_k.dora_scale", (8, 1), False),
        (f"{KOHYA}_attn2_to_k.dora_scale", (1, 8), True),
        (f"unet.{UNET}.attn2.to_k.lora_magnitude_vector.weight", (8,), False),
        (f"unet.{UNET}.attn2.to_k.lora_magnitude_vector", (8,), False),
        (f"unet.{UNET}.attn2.to_k.lora_magnitude_vector.default.weight", (8,), False),
        (f"unet.{UNET}.attn2.to_k.lora_magnitude_vector.weight", (1, 8), True),
        (f"unet.{UNET}.attn2.to_k.magnitude", (8,), False),
    ],
)
def test_dora_key_formats_have_their_axes(
    tmp_path: Path, key: str, shape: tuple[int, ...], on_input: bool
) -> None:
    """The layer is square, so nothing but the spelling and the shape tell the axis."""
    generator = torch.Generator().manual_seed(5)
    down, up, base = (torch.randn(n, m, generator=generator) for n, m in ((2, 8), (8, 2), (8, 8)))
    lengths = torch.rand(8, generator=generator) + 0.5
    stem = key.split(".dora")[0] if "dora" in key else key.split(".to_k")[0] + ".to_k"
    suffixes = (".lora_down.weight", ".lora_up.weight") if "dora" in key else (
        ".lora_A.weight", ".lora_B.weight")  # fmt: skip
    file = read(
        tmp_path, {stem + suffixes[0]: down, stem + suffixes[1]: up, key: lengths.reshape(shape)}
    )
    layer = file.layers[f"{KOHYA}_attn2_to_k"]
    assert isinstance(layer, DoraLayer)
    assert layer.on_input == on_input
    turned = (base + up @ down).double()
    axis = 0 if on_input else 1
    expected = turned / turned.norm(dim=axis, keepdim=True)
    expected = expected * (lengths[None] if on_input else lengths[:, None]) - base
    torch.testing.assert_close(layer.delta_for(base).double(), expected, rtol=1e-5, atol=1e-5)


def test_doras_lengths_must_fit(tmp_path: Path) -> None:
    down, up = factors(0)
    keys = {f"{FF}.lora_down.weight": down, f"{FF}.lora_up.weight": up}
    with pytest.raises(WeightsError, match="has 5 DoRA magnitudes, and 6 rows of 8"):
        read(tmp_path, keys | {f"{FF}.magnitude": torch.ones(5)})
    with pytest.raises(WeightsError, match="has DoRA magnitudes in two key formats"):
        read(
            tmp_path,
            keys | {f"{FF}.magnitude": torch.ones(6), f"{FF}.dora_scale": torch.ones(6, 1)},
        )
    with pytest.raises(WeightsError, match="has no factors, which are no adapter"):
        read(tmp_path, keys | {f"{TO_OUT}.dora_scale": torch.ones(6, 1)})


def test_number_formats_may_be_mixed(tmp_path: Path) -> None:
    down, up = factors(0)
    small = torch.float8_e4m3fn
    file = read(tmp_path, {
        f"{FF}.lora_down.weight": down.half(), f"{FF}.lora_up.weight": up.bfloat16(),
        f"{FF}.alpha": torch.tensor(3, dtype=torch.int64),
        f"{TO_OUT}.lora_down.weight": down.to(small), f"{TO_OUT}.lora_up.weight": up.double(),
    })  # fmt: skip
    assert file.layers[FF].alpha == 3.0
    product = up.bfloat16().float() @ down.half().float()
    torch.testing.assert_close(file.layers[FF].delta(), product)
    torch.testing.assert_close(file.layers[TO_OUT].delta(), up @ down.to(small).float())
    with pytest.raises(WeightsError, match="holds int8 numbers; quantised"):
        read(tmp_path, {f"{FF}.lora_down.weight": down.to(torch.int8), f"{FF}.lora_up.weight": up})


def test_full_weight_differences_are_read(tmp_path: Path) -> None:
    file = read(tmp_path, {f"{FF}.diff": factors(0)[0]})
    layer = file.layers[FF]
    assert isinstance(layer, FullLayer)
    torch.testing.assert_close(layer.delta_for(torch.zeros(3, 8)), factors(0)[0])
    with pytest.raises(ValueError, match=r"full of shape \[3, 8\] does not fit .* \[8, 3\]"):
        layer.delta_for(torch.zeros(8, 3))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (6, 2)}, "hada_w2_b is missing"),
        (
            {"hada_w1_a": (6, 2), "hada_w1_b": (3, 8), "hada_w2_a": (6, 2), "hada_w2_b": (2, 8)},
            "do not fit each other",
        ),
        ({"lokr_w1": (2, 2)}, "has no lokr_w2, or only parts"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 2)}, "has no lokr_w2, or only parts"),
        ({"lokr_w1": (2, 2), "lokr_w1_a": (2, 2), "lokr_w2": (2, 2)}, "has no lokr_w1, or only"),
        (
            {
                "hada_w1_a": (2, 6), "hada_w1_b": (2, 8), "hada_w2_a": (2, 6), "hada_w2_b": (2, 8),
                "hada_t1": (2, 2, 3, 3),
            },
            "one of hada_t1 and hada_t2",
        ),
        ({"lora_mid.weight": (2, 2, 3, 3), "lora_down.weight": (2, 4, 1, 1)}, "lora_up.* missing"),
        ({"lora_down.weight": (2, 8), "hada_w1_a": (6, 2)}, "which are no adapter"),
    ],
)  # fmt: skip
def test_unfinished_layers_are_named(
    tmp_path: Path, parts: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        read(tmp_path, {f"{FF}.{key}": torch.ones(shape) for key, shape in parts.items()})
    assert FF in str(caught.value)


@pytest.mark.parametrize(
    ("key", "description"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a part of a model"),
        ("down_blocks.0.resnets.0.conv1.weight", "a U-Net"),
        ("first_stage_model.encoder.conv_in.weight", "a VAE"),
        ("decoder.mid_block.resnets.0.conv1.weight", "a VAE"),
        ("text_model.embeddings.token_embedding.weight", "a text encoder"),
        ("emb_params", "a textual inversion embedding"),
        ("clip_l", "a textual inversion embedding"),
        ("control_model.zero_convs.0.weight", "a ControlNet"),
        (f"{FF}.oft_diag", "OFT are not supported"),
        (f"{FF}.lora_B.bias", "LoRAs that train biases are not supported"),
        (f"{FF}.w_norm", "LoRAs that train norms are not supported"),
        (f"{FF}.on_input", "IA3 are not supported"),
        ("something.weight", "they belong to no known kind of adapter"),
    ],
)
def test_files_that_are_not_loras_are_described(tmp_path: Path, key: str, description: str) -> None:
    with pytest.raises(WeightsError, match=rf"1 of 9 keys are no LoRA keys, first .*{description}"):
        read(tmp_path, {**keys_in("kohya"), key: torch.ones(1)})


def test_full_models_and_other_files_are_no_lora(tmp_path: Path) -> None:
    starts = "model.diffusion_model.a", "first_stage_model.a", "conditioner.embedders.0.a"
    with pytest.raises(WeightsError, match=r"3 of 3 keys .* a full model; open it with -m"):
        read(tmp_path, {start: torch.ones(1) for start in starts})
    with pytest.raises(WeightsError, match=r"1 of 1 keys .* it is no LoRA file"):
        read(tmp_path, {"something": torch.ones(1)})


@pytest.mark.parametrize(
    "name",
    [
        "transformer.single_blocks.0.attn.to_q",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_transformer_single_transformer_blocks_0_attn_to_q",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_k",
    ],
)
def test_layers_of_later_families_are_recognized(name: str) -> None:
    assert is_for_later_family(name)
    for key in keys_in("kohya"):
        assert not is_for_later_family(key)
    assert not is_for_later_family("transformer.text_model.encoder.layers.0.mlp.fc1")


def test_names_that_match_no_layer_are_refused() -> None:
    for name in ("lora_unet_elsewhere", "lora_te_text_model_encoder_strata_0", "x", "lora_unet_"):
        assert parse_layer_name(name) is None
    for name in ("transformer.blocks.0.attn.to_q", "x.y", "unet.nowhere", "model.layers.0.fc1"):
        assert parse_layer_name(name) is None
