"""The algebra of LoRA files, all of it tested on the dense change of the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.adapters.kinds.dora import DoraLayer
from lorasmith.adapters.kinds.loha import LohaLayer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.block_weights import LBW_BLOCKS, PRESETS, parse_block_weights
from lorasmith.adapters.tools.diff import compare_loras
from lorasmith.adapters.tools.extract import extract_difference
from lorasmith.adapters.tools.lora_arithmetic import (
    inner_product,
    spectrum_of_layer,
    spectrum_of_matrix,
    truncate_rank,
    unify_alpha,
    weighted_sum,
)
from lorasmith.adapters.tools.merge import MergeInput, add_loras, resize_layers, weight_lookup
from lorasmith.core.errors import ConfigError, WeightsError

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"


def dense(layer: LoraLayer) -> torch.Tensor:
    product = layer.up.double().flatten(1) @ layer.down.double().flatten(1)
    return (layer.alpha / len(layer.down) * product).reshape(len(layer.up), *layer.down.shape[1:])


@st.composite
def lora_layers(
    draw: st.DrawFn, kernel: int | None = None, sides: tuple[int, int] = (6, 5)
) -> LoraLayer:
    rank = draw(st.integers(1, 7))  # may be more than the matrix has
    alpha = draw(st.sampled_from([0.5, 1.0, 3.0, 8.0, -2.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    extra = [] if kernel is None else [kernel, kernel]
    down = torch.randn(rank, sides[1], *extra, generator=generator)
    up = torch.randn(sides[0], rank, *[1 for _ in extra], generator=generator)
    return LoraLayer(down, up, alpha)


weights = st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3)


@pytest.mark.parametrize("kernel", [None, 3])
@settings(max_examples=40)
@given(data=st.data(), first=weights, second=weights)
def test_sum_of_loras_is_the_sum_of_their_deltas(
    kernel: int | None, data: st.DataObject, first: float, second: float
) -> None:
    lora, other = data.draw(lora_layers(kernel)), data.draw(lora_layers(kernel))
    summed = weighted_sum([(lora, first), (other, second)])
    torch.testing.assert_close(
        dense(summed), first * dense(lora) + second * dense(other), rtol=1e-5, atol=1e-5
    )
    assert summed.alpha == summed.rank == lora.rank + other.rank


@settings(max_examples=40)
@given(data=st.data(), factor=weights)
def test_merging_is_linear(data: st.DataObject, factor: float) -> None:
    """m(c A) = c m(A), m(A + B) = m(A) + m(B), and the order does not matter."""
    first, second = data.draw(lora_layers()), data.draw(lora_layers())
    scaled = weighted_sum([(first, factor), (second, factor)])
    full = weighted_sum([(first, 1.0), (second, 1.0)])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(dense(scaled), factor * dense(full), **close)
    nested = weighted_sum([(weighted_sum([(first, 1.0)]), factor), (second, factor)])
    torch.testing.assert_close(dense(nested), dense(scaled), **close)
    torch.testing.assert_close(
        dense(weighted_sum([(second, 1.0), (first, 1.0)])), dense(full), **close
    )


@pytest.mark.parametrize("kernel", [None, 3])
@settings(max_examples=40)
@given(data=st.data())
def test_resizing_to_full_rank_is_the_identity(kernel: int | None, data: st.DataObject) -> None:
    layer = data.draw(lora_layers(kernel))
    spectrum = spectrum_of_layer(layer)
    assert spectrum.rank == min(layer.rank, 6, 5 * (kernel or 1) ** 2)
    truncated = spectrum.truncate(spectrum.rank)
    torch.testing.assert_close(dense(truncated), dense(layer), rtol=1e-5, atol=1e-5)
    assert truncated.down.shape[1:] == layer.down.shape[1:]
    assert spectrum.energy == pytest.approx(float(dense(layer).square().sum()), rel=1e-9)


@settings(max_examples=40)
@given(data=st.data(), rank=st.integers(1, 6))
def test_resized_lora_is_the_best_approximation_of_its_rank(data: st.DataObject, rank: int) -> None:
    """The error is the energy of the singular values that are left out (Eckart, Young 1936)."""
    layer = data.draw(lora_layers())
    layers, retained = truncate_rank({"x": spectrum_of_layer(layer)}, ("rank", rank))
    values = torch.linalg.svdvals(dense(layer))
    lost = float((dense(layers["x"]) - dense(layer)).square().sum())
    assert lost == pytest.approx(float(values[rank:].square().sum()), rel=1e-4, abs=1e-8)
    assert retained.share == pytest.approx(1 - lost / float(values.square().sum()), abs=1e-6)
    assert layers["x"].rank <= rank


@settings(max_examples=40)
@given(data=st.data(), share=st.floats(0.05, 1.0))
def test_retained_energy_gives_the_smallest_rank(data: st.DataObject, share: float) -> None:
    spectrum = spectrum_of_layer(data.draw(lora_layers()))
    rank = spectrum.rank_for(share)
    reached = spectrum.values.square().cumsum(0) / spectrum.energy
    assert reached[rank - 1] >= share - 1e-9
    assert rank == 1 or reached[rank - 2] < share


def test_zero_matrix_has_rank_one_and_no_energy() -> None:
    spectrum = spectrum_of_matrix(torch.zeros(4, 3))
    layers, retained = truncate_rank({"x": spectrum}, ("energy", 0.9))
    assert layers["x"].rank == 1
    assert not dense(layers["x"]).any()
    assert retained.share == 1.0


@settings(max_examples=30)
@given(data=st.data())
def test_inner_products_need_no_dense_matrices(data: st.DataObject) -> None:
    first, second = data.draw(lora_layers(3)), data.draw(lora_layers(3))
    assert inner_product(first, second) == pytest.approx(
        float((dense(first) * dense(second)).sum()), rel=1e-6, abs=1e-6
    )
    assert inner_product(first, first) == pytest.approx(first.delta_norm() ** 2, rel=1e-6)


def test_single_alpha_for_all_layers() -> None:
    first, second = (
        LoraLayer(torch.randn(2, 5), torch.randn(6, 2), 1.0),
        LoraLayer(torch.randn(4, 5), torch.randn(6, 4), 9.0),
    )
    level = unify_alpha({"a": first, "b": second})
    assert {layer.alpha for layer in level.values()} == {4.0}
    torch.testing.assert_close(dense(level["a"]), dense(first), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dense(level["b"]), dense(second), rtol=1e-6, atol=1e-6)


def test_1x1_kernels_add_to_linear_layers() -> None:
    """SD 2.x files come with either."""
    linear = LoraLayer(torch.randn(2, 5), torch.randn(6, 2), 1.0)
    convolution = LoraLayer(torch.randn(3, 5, 1, 1), torch.randn(6, 3, 1, 1), 1.0)
    summed = weighted_sum([(linear, 1.0), (convolution, 1.0)])
    torch.testing.assert_close(
        dense(summed), dense(linear) + dense(convolution)[:, :, 0, 0], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="cannot be added"):
        weighted_sum([(linear, 1.0), (LoraLayer(torch.ones(2, 4), torch.ones(6, 2), 1.0), 1.0)])


# --- whole files ----------------------------------------------------------------------------


def loha() -> LohaLayer:
    generator = torch.Generator().manual_seed(3)
    shapes = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 72), "hada_w2_a": (8, 2), "hada_w2_b": (2, 72)}
    return LohaLayer({k: torch.randn(s, generator=generator) for k, s in shapes.items()}, 1.0)


def file_of(layers: dict, name: str = "some", **metadata: str) -> LoraFile:
    return LoraFile(Path(f"{name}.safetensors"), layers, metadata)


def test_other_kinds_add_up_by_their_dense_changes() -> None:
    lora = LoraLayer(torch.randn(2, 8, 3, 3), torch.randn(8, 2, 1, 1), 1.0)
    loha_file, lora_file = file_of({CONV: loha()}), file_of({CONV: lora}, "two")
    layers = add_loras([MergeInput(loha_file, 0.5), MergeInput(lora_file, -1.0)], "sd1")
    expected = 0.5 * loha().delta().reshape(8, 8, 3, 3).double() - dense(lora)
    torch.testing.assert_close(dense(layers[CONV]), expected, rtol=1e-4, atol=1e-4)
    smaller, retained = resize_layers(loha_file, loha_file.layers, ("energy", 1.0))
    torch.testing.assert_close(
        dense(smaller[CONV]).flatten(1), loha().delta().double(), rtol=1e-4, atol=1e-4
    )
    assert retained.share == pytest.approx(1.0)


def test_dora_needs_its_base() -> None:
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    plain = LoraLayer(torch.randn(2, 5), torch.randn(6, 2), 1.0)
    dora = DoraLayer(plain, torch.rand(6) + 0.5, on_input=False)
    file = file_of({NAME: dora})
    with pytest.raises(WeightsError, match="is DoRA, whose effect depends on the base; name its"):
        add_loras([MergeInput(file)], "sd1")
    with pytest.raises(WeightsError, match="the base model has no such layer"):
        add_loras([MergeInput(file)], "sd1", lambda _: None)
    layers = add_loras([MergeInput(file, 0.5)], "sd1", lambda _: base)
    torch.testing.assert_close(
        dense(layers[NAME]), 0.5 * dora.delta_for(base).double(), rtol=1e-4, atol=1e-4
    )


def test_files_of_different_kinds_are_not_added(tmp_path: Path) -> None:
    from lorasmith.adapters.files.derived_metadata import common_prediction_type
    from lorasmith.adapters.tools.merge import common_family

    layer = LoraLayer(torch.ones(1, 5), torch.ones(6, 1), 1.0)
    first = file_of({NAME: layer}, "one", ss_base_model_version="sd_v1")
    second = file_of({NAME: layer}, "two", ss_base_model_version="sdxl_base_v1-0")
    with pytest.raises(
        WeightsError, match=r"two.safetensors is for SDXL and one.safetensors for SD 1"
    ):
        common_family([first, second])
    three = file_of({NAME: layer}, "three", **{"modelspec.prediction_type": "v"})
    four = file_of({NAME: layer}, "four", **{"modelspec.prediction_type": "epsilon"})
    with pytest.raises(WeightsError, match=r"four\.safetensors is for models that predict epsilon"):
        common_prediction_type([three, first, four])
    wide = file_of({NAME: LoraLayer(torch.ones(1, 7), torch.ones(6, 1), 1.0)}, "wide")
    with pytest.raises(WeightsError, match=f"wide.safetensors: {NAME}: layers of 6 x"):
        add_loras([MergeInput(first), MergeInput(wide)], "sd1")


def test_equivalent_names_are_the_same_layer() -> None:
    """SDXL's layers in sgm's names and in diffusers' add up under sgm's."""
    layer = LoraLayer(torch.ones(1, 5), torch.ones(6, 1), 1.0)
    tail = "transformer_blocks_0_attn1_to_q"
    first = file_of({f"lora_unet_input_blocks_4_1_{tail}": layer})
    second = file_of({f"lora_unet_down_blocks_1_attentions_0_{tail}": layer})
    layers = add_loras([MergeInput(first), MergeInput(second)], "sdxl")
    assert list(layers) == [f"lora_unet_input_blocks_4_1_{tail}"]
    assert layers[f"lora_unet_input_blocks_4_1_{tail}"].rank == 2


# --- models ---------------------------------------------------------------------------------


def test_extraction_recovers_a_fused_lora(model, tiny_model: Path, make_lora) -> None:
    from lorasmith.adapters.tools.fuse_into_model import fuse_into_model
    from lorasmith.models.load import load_model

    lora = make_lora(["_to_", "conv1", "ff_net", "lora_te_"])
    fuse_into_model(model, [MergeInput(lora, 0.7)])
    base = load_model(tiny_model)
    result = extract_difference(model, base, ("rank", 3))
    assert result.layers.keys() == lora.layers.keys()
    assert result.not_extracted == ()
    assert result.energy.share == pytest.approx(1.0, abs=1e-6)
    for name, layer in lora.layers.items():
        torch.testing.assert_close(
            dense(result.layers[name]), 0.7 * dense(layer), rtol=1e-3, atol=1e-5
        )
    with torch.no_grad():
        model.unet.conv_norm_out.weight += 1
        model.text_encoder.embeddings.token_embedding.weight += 1
    not_extracted = extract_difference(model, base, ("rank", 1)).not_extracted
    assert [key.split(".", 1)[0] for key in not_extracted] == ["unet", "text_encoder"]
    with pytest.raises(WeightsError, match="no layer differs"):
        extract_difference(base, base, ("rank", 3))


def test_models_of_different_kinds_have_no_difference(model, tiny_sdxl: Path) -> None:
    from lorasmith.models.load import load_model

    with pytest.raises(WeightsError, match="are not of one kind"):
        extract_difference(load_model(tiny_sdxl), model, ("rank", 3))


def test_fused_doras_equal_attached_ones(model, make_lora) -> None:
    """Two DoRAs each change the base's weights, not each other's result."""
    from lorasmith.adapters.injection.inject import attach_lora
    from lorasmith.adapters.naming.layer_names import find_layer_refs
    from lorasmith.adapters.nn.lora import layer_weight
    from lorasmith.adapters.tools.fuse_into_model import fuse_into_model

    files = []
    for seed in (1, 2):
        plain = make_lora(["attn2_to_k", "conv1"], seed=seed)
        layers = {
            name: DoraLayer(layer, torch.rand(len(layer.up)) + 0.5, on_input=False)
            for name, layer in plain.layers.items()
        }
        files.append(replace(plain, layers=layers))
    attached = [
        attach_lora(model, file, weight) for file, weight in zip(files, (1.0, 0.5), strict=True)
    ]
    expected = {
        name: layer_weight(ref.layer)
        + attached[0].adapters[name].delta_weight()
        + 0.5 * attached[1].adapters[name].delta_weight()
        for name, ref in find_layer_refs(model).items()
        if name in files[0].layers
    }
    for dora in attached:
        dora.detach()
    fuse_into_model(model, [MergeInput(files[0]), MergeInput(files[1], 0.5)])
    for name, weight in expected.items():
        torch.testing.assert_close(layer_weight(find_layer_refs(model)[name].layer), weight)
    assert weight_lookup(model) is not None


# --- weights by block -----------------------------------------------------------------------


@pytest.mark.parametrize("length", LBW_BLOCKS)
def test_vectors_name_their_blocks(length: int) -> None:
    numbers = [round(0.1 * n, 1) for n in range(length)]
    blocks = parse_block_weights(",".join(map(str, numbers)))
    chosen = blocks.for_family(is_sdxl=length in (12, 20))
    assert [chosen.weight_of(block) for block in LBW_BLOCKS[length]] == numbers
    assert chosen.weight_of("OUT99") == 0.0, "blocks that are left out count as 0"
    assert chosen.weight_of("") == 1.0, "layers outside of the blocks keep the plain weight"
    with pytest.raises(ConfigError, match="a length for the other family"):
        blocks.for_family(is_sdxl=length in (17, 26))


def test_block_presets_are_the_published_vectors() -> None:
    known = {
        "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0", "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0", "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
        "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
        "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1", "ALL": ",".join(["1"] * 17),
        "NONE": ",".join(["0"] * 17), "ALL0.5": ",".join(["0.5"] * 17),
    }  # fmt: skip
    assert set(known) == set(PRESETS)
    for name, vector in known.items():
        preset, plain = parse_block_weights(name), parse_block_weights(vector)
        for block in LBW_BLOCKS[26]:
            assert preset.for_family(False).weight_of(block) == plain.for_family(False).weight_of(
                block
            ), name
        assert preset.for_family(True).weights.keys() <= set(LBW_BLOCKS[12])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OUTDD", "no preset 'OUTDD'; did you mean OUTD"),
        ("1,1,1", "3 numbers; SD takes 17 or 26, SDXL 12 or 20"),
        (",".join(["x"] * 17), "'x' is not a number"),
        (",".join(["nan"] * 12), "nan is not between -10 and 10"),
        ("1," * 16 + "99", "99 is not between"),
    ],
)
def test_malformed_block_weights_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_block_weights(text)


def test_blocks_weigh_layers(make_lora) -> None:
    file = make_lora(["attn1_to_q", "lora_te_"])
    layers = add_loras([MergeInput(file, 2.0, parse_block_weights("OUTALL"))], "sd1")
    retained = {
        name for name in file.layers if "_up_blocks_" in name or name.startswith("lora_te_")
    }
    assert layers.keys() == retained
    assert 0 < len(retained) < len(file.layers)
    for name in retained:
        torch.testing.assert_close(
            dense(layers[name]), 2 * dense(file.layers[name]), rtol=1e-5, atol=1e-6
        )
    assert add_loras([MergeInput(file, 2.0, parse_block_weights("NONE"))], "sd1") == {}


# --- comparing ------------------------------------------------------------------------------


def test_comparison_is_about_the_dense_changes(make_lora) -> None:
    first, second = (
        make_lora(["attn1_to_q", "conv1"]),
        make_lora(["attn1_to_q", "lora_te_"], rank=5, seed=4),
    )
    second = replace(second, metadata={"ss_output_name": "two", "sshs_model_hash": "x"})
    result = compare_loras(first, second)
    names = {**first.layers, **second.layers}
    empty = torch.tensor(0.0, dtype=torch.float64)
    deltas = [
        tuple(dense(f.layers[n]) if n in f.layers else empty for f in (first, second))
        for n in names
    ]
    assert result.total.layers == len(names)
    assert result.total.first_norm == pytest.approx(
        sum(float((a**2).sum()) for a, _ in deltas) ** 0.5
    )
    expected = sum(float(((a - b) ** 2).sum()) for a, b in deltas) ** 0.5
    assert result.total.diff_norm == pytest.approx(expected, rel=1e-6)
    assert {block.block for block in result.blocks} >= {"BASE", "MID", "IN01", "OUT11"}
    assert all("conv1" in name for name in result.only_in_first)
    assert all(name.startswith("lora_te_") for name in result.only_in_second)
    assert result.metadata == {"ss_output_name": (None, "two")}
    unchanged = compare_loras(first, first)
    assert unchanged.total.cosine == pytest.approx(1.0)
    assert unchanged.total.diff_norm == pytest.approx(0.0, abs=1e-6 * unchanged.total.first_norm)
    assert unchanged.only_in_first == unchanged.only_in_second == ()
