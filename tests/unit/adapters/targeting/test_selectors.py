"""Layers that presets, blocks and patterns select on models of published sizes, and errors."""

from collections import Counter

import pytest

from helpers.published_sizes import networks
from lorasmith.adapters.naming.layer_names import LayerRef, find_layer_refs
from lorasmith.adapters.targeting.selectors import LAYER_KINDS, match_target
from lorasmith.adapters.targeting.targets import resolve_targets, select_layers
from lorasmith.config.lora import LoraConfig, LoraOverride
from lorasmith.config.optimization import TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.models.model import Model

RATES = TrainerConfig(learning_rate=1e-3, text_encoder_lr=4e-4)


def matching_refs(model: str, target: str) -> list[LayerRef]:
    return match_target(target, list(find_layer_refs(networks(model)).values()), "lora.targets")


def paths(model: str, target: str) -> set[str]:
    return {f"{ref.part}.{ref.path}" for ref in matching_refs(model, target)}


@pytest.mark.parametrize(
    ("model", "target", "count"),
    [
        ("sd15", "cross-attention", 16 * 4),
        ("sd15", "self-attention", 16 * 4),
        ("sd15", "attention", 16 * 8),
        ("sd15", "attention+ff", 16 * 10),
        ("sd15", "all-linear", 192),
        ("sd15", "all-linear+conv", 278),
        ("sd15", "+conv", 86),
        ("sd15", "conv", 86),
        ("sd15", "text-encoder", 72),
        ("sd15", "all-linear+conv+text-encoder", 350),
        ("sd21", "all-linear", 192),
        ("sd21", "all-linear+conv", 278),
        ("sd21", "text-encoder", 6 * 23),
        ("sdxl", "attention", 70 * 8),
        ("sdxl", "all-linear", 722),
        ("sdxl", "all-linear+conv", 788),
        ("sdxl", "text-encoder", 72 + 192),
        ("sdxl", "text_encoder", 72),
        ("sdxl", "text_encoder_2", 192),
        ("sdxl", "b-lora", 2 * 102),
        ("sdxl", "attention@b-lora-style", 80),
    ],
)
def test_selector_counts_are_those_of_published_models(model: str, target: str, count: int) -> None:
    assert len(matching_refs(model, target)) == count


def test_kinds_are_the_layers_that_their_names_say() -> None:
    ends = {path.rsplit(".attn2.", 1)[1] for path in paths("sd15", "cross-attention")}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    assert {path.rsplit(".ff.", 1)[1] for path in paths("sd15", "ff")} == {"net.0.proj", "net.2"}
    inner = Counter(path.rsplit(".", 1)[1] for path in paths("sd15", "conv"))
    samplers = inner.pop("conv")
    assert samplers == 6
    assert inner == {"conv1": 22, "conv2": 22, "time_emb_proj": 22, "conv_shortcut": 14}


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_joined_words_are_the_union(model: str) -> None:
    assert paths(model, "attention") == paths(model, "cross-attention+self-attention")
    assert paths(model, "all-linear") > paths(model, "attention+ff")
    for kind in LAYER_KINDS:
        assert paths(model, f"{kind}+conv") == paths(model, kind) | paths(model, "conv")


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl"])
def test_down_mid_and_up_cover_the_unet(model: str) -> None:
    parts = [paths(model, f"all-linear+conv@{block}") for block in ("down", "mid", "up")]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == paths(model, "all-linear+conv")
    assert paths(model, "up") == paths(model, "all-linear@up")
    assert paths(model, "down+conv") == parts[0]
    assert paths(model, "attention@down+up") == paths(model, "attention") - paths(model, "mid")


def test_single_blocks_are_selected() -> None:
    assert all(path.startswith("unet.up_blocks.1.attentions.") for path in paths("sd15", "up.1"))
    assert paths("sd15", "IN04") == paths("sd15", "down_blocks.1.attentions.0")
    assert paths("sd15", "conv@IN03") == {"unet.down_blocks.0.downsamplers.0.conv"}
    assert paths("sd15", "OUT05") == paths("sd15", "up_blocks.1.attentions.2")
    assert paths("sd15", "MID") == paths("sd15", "mid")
    assert paths("sdxl", "OUT00+OUT01") == paths("sdxl", "b-lora")
    assert paths("sdxl", "b-lora") == paths("sdxl", "b-lora-content+b-lora-style")


def test_patterns_match_module_paths() -> None:
    conv = "up_blocks.2.resnets.1.conv1"
    assert paths("sd15", conv) == paths("sd15", f"unet.{conv}") == {f"unet.{conv}"}
    assert len(matching_refs("sd15", "up_blocks.1.*.attn2.*")) == 3 * 4
    assert paths("sd15", "*.attn2.to_k@up") == paths("sd15", "up_blocks.*.attn2.to_k")
    assert paths("sd15", "mid_block.attentions.0") == paths("sd15", "mid")
    assert paths("sd15", "conv_in") == {"unet.conv_in"}
    first = {f"text_encoder.encoder.layers.0.self_attn.{x}_proj" for x in ("q", "k", "v", "out")}
    for key_format in ("text_encoder.encoder", "text_encoder.text_model.encoder"):
        assert paths("sd15", f"{key_format}.layers.0.self_attn.*") == first


def test_patterns_reach_the_text_encoders_only_by_name() -> None:
    assert all(ref.part == "unet" for ref in matching_refs("sdxl", "*"))
    with pytest.raises(ConfigError, match="fits no layer"):
        matching_refs("sdxl", "*.q_proj")
    assert len(matching_refs("sdxl", "text_encoder*.q_proj")) == 12 + 32
    assert "text_encoder_2.text_projection" not in paths("sdxl", "text_encoder*")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("atention", r"there is no preset 'atention'; did you mean .*attention"),
        ("nonsense", r"there is no preset 'nonsense'; presets are cross-attention, .*b-lora-style"),
        ("attention+cnv", "'cnv'; did you mean conv"),
        ("attention@upp", "'upp'; did you mean up"),
        ("attention@ff", "there is no preset 'ff'"),
        ("up_blocks.2.resnets.9.conv1", r"did you mean up_blocks\.2\.resnets\.\d\.conv1"),
        ("up_blocks.1.*.atn2.*", "did you mean attn2"),
        ("text_encoder.encoder.layers.0.self_attn.qproj", r"did you mean text_encoder\..*q_proj"),
        ("up.0", r"'up\.0' fits no layer of this model; such layers are in down\.0, .*mid, up\.1"),
        ("IN03", r"such layers are in down\.0"),
        ("b-lora", "it is about SDXL"),
        ("up@down", "names blocks on both sides"),
        ("attention@", "is not TYPES"),
        ("+", "is not TYPES"),
        ("attention++ff", "is not TYPES"),
        ("text-encoder@up", "fits no layer"),
    ],
)
def test_selector_without_match_suggests_close_names(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^lora\.targets: .*{message}"):
        matching_refs("sd15", target)


def test_lists_and_commas_mean_the_same() -> None:
    refs = list(find_layer_refs(networks("sd15")).values())
    selected = select_layers(("up.1", "attention"), refs, "lora.targets")
    assert selected == select_layers("attention, up.1", refs, "lora.targets")
    assert [ref.name for ref in selected] == [p.name for p in refs if p in selected]
    with pytest.raises(ConfigError, match="'atention'"):
        select_layers("attention,atention", refs, "lora.targets")


def test_overrides_set_rank_alpha_and_learning_rate() -> None:
    lora = LoraConfig(
        rank=8,
        alpha=4.0,
        targets=("attention", "text-encoder"),
        overrides=(
            LoraOverride(targets="up.1", rank=32),
            LoraOverride(targets="conv@mid", learning_rate=5e-5),
            LoraOverride(targets="self-attention@up.1", alpha=1.0),
            LoraOverride(targets="up.1", rank=2, alpha=3.0),
        ),
    )
    result = {
        f"{target.ref.part}.{target.ref.path}": (
            target.rank,
            target.alpha,
            target.learning_rate,
            target.part,
        )
        for target in resolve_targets(networks("sd15"), lora, RATES)
    }
    block = "unet.{}.attentions.0.transformer_blocks.0.{}"
    assert result[block.format("down_blocks.0", "attn1.to_q")] == (8, 4.0, 1e-3, "unet")
    assert result["unet.mid_block.resnets.0.conv1"] == (8, 4.0, 5e-5, "conv@mid")
    # The last part wins, here over the first and the third.
    assert result[block.format("up_blocks.1", "attn1.to_q")] == (2, 3.0, 1e-3, "up.1#2")
    text = "text_encoder.encoder.layers.3.mlp.fc1"
    assert result[text] == (8, 4.0, 4e-4, "text")
    assert len(result) == 16 * 8 + 72 + 3 * 4 + 6  # ff, in and out of up.1; mid's two resnets


def test_override_sets_alpha() -> None:
    def of(**numbers: float) -> tuple[int, float]:
        part = LoraOverride.model_validate({"targets": "mid", **numbers})
        lora = LoraConfig(rank=8, alpha=4.0, targets=(), overrides=(part,))
        (pair,) = {
            (target.rank, target.alpha) for target in resolve_targets(networks("sd15"), lora, RATES)
        }
        return pair

    assert of() == (8, 4.0)
    assert of(rank=16) == (16, 16.0)
    assert of(alpha=2.0) == (8, 2.0)
    assert of(rank=16, alpha=2.0) == (16, 2.0)


def test_override_that_selects_nothing_is_named() -> None:
    lora = LoraConfig(overrides=(LoraOverride(targets="mid"), LoraOverride(targets="up.7")))
    with pytest.raises(ConfigError, match=r"^lora\.overrides\.1\.targets: 'up\.7' fits no layer"):
        resolve_targets(networks("sd15"), lora, RATES)


def test_targets_select_the_layers_of_the_model(model: Model) -> None:
    targets = resolve_targets(model, LoraConfig(targets="attention+text-encoder"), RATES)
    roots = {id(model.unet): "unet", id(model.text_encoder): "text_encoder"}
    for target in targets:
        assert roots[id(target.ref.network)] == target.ref.part
        assert target.ref.network.get_submodule(target.ref.path) is target.ref.layer


# --- PEFT's target lists ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
     "conv1", "time_emb_proj", "q_proj", "k_proj", "v_proj", "out_proj"],
)  # fmt: skip
def test_peft_module_name_selects_the_layers_that_peft_selects(name: str) -> None:
    """PEFT compares the path with the name, and its end with a dot and the name."""
    expected = {
        f"{ref.part}.{ref.path}"
        for ref in find_layer_refs(networks("sdxl")).values()
        if ref.path == name or ref.path.endswith(f".{name}")
    }
    assert paths("sdxl", name) == expected != set()


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_bare_attention_selects_all_layers_inside(name: str) -> None:
    inside = paths("sd15", name)
    assert inside == {path for path in paths("sd15", "all-linear") if f".{name}." in path}
    assert {path.rpartition(f".{name}.")[2] for path in inside} == {
        "to_q", "to_k", "to_v", "to_out.0",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fc1", "fc2", "mlp"])
def test_text_encoder_module_names_are_selected(name: str) -> None:
    assert paths("sd15", name)
    assert all(
        path.startswith("text_encoder.") and f".{name}" in path for path in paths("sd15", name)
    )


def test_peft_list_is_the_union_of_its_names() -> None:
    refs = list(find_layer_refs(networks("sd15")).values())
    names = ("to_k", "to_q", "to_v", "to_out.0")
    selected = select_layers(names, refs, "lora.targets")
    assert selected == select_layers("attention", refs, "lora.targets")
    assert paths("sd15", "to_k@up") == paths("sd15", "to_k") & paths("sd15", "up")


@pytest.mark.parametrize("name", ["add_k_proj", "add_v_proj", "add_q_proj", "to_add_out"])
def test_layers_of_later_models_are_explained(name: str) -> None:
    refs = list(find_layer_refs(networks("sd15")).values())
    with pytest.raises(ConfigError, match=f"only SD 3 and Flux have {name}: leave it out"):
        select_layers(("to_k", name), refs, "lora.targets")
