"""The closed-form projection of down-matrices, against its definition in float64."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.tools.kv_projection import (
    SecondMoments,
    compute_second_moment,
    delta_energy,
    measure_moments,
    project_down,
    project_layers,
)
from lorasmith.core.device import make_generator
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.models.load import load_model

WIDTH, RANK = 6, 3
K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=make_generator(11, seed), dtype=torch.float64)


def cost(
    new: torch.Tensor, old: torch.Tensor, tag: torch.Tensor, other: torch.Tensor, strength: float
) -> float:
    """The definition, summed token by token."""
    retained = sum(float(((new - old) @ x).square().sum()) for x in tag) / len(tag)
    leaked = sum(float((new @ x).square().sum()) for x in other) / len(other)
    return retained + strength * leaked


@given(seed=st.integers(0, 10**6), strength=st.sampled_from([0.01, 1.0, 30.0]))
def test_no_other_matrix_does_better(seed: int, strength: float) -> None:
    down, tag, other = (
        numbers(seed, RANK, WIDTH),
        numbers(seed + 1, 9, WIDTH),
        numbers(seed + 2, 12, WIDTH),
    )
    moments = SecondMoments(compute_second_moment(tag), compute_second_moment(other))
    best = project_down(down, moments, strength)
    assert best.shape == down.shape
    least = cost(best, down, tag, other, strength)
    for trial in range(4):
        step = 10.0 ** -(trial + 1) * numbers(seed + 3 + trial, RANK, WIDTH)
        assert cost(best + step, down, tag, other, strength) > least


def test_projection_loses_nothing_where_tag_and_other_words_are_independent() -> None:
    """Also where the directions are not orthogonal."""
    tag, other = numbers(1, 4, 2) @ numbers(2, 2, WIDTH), numbers(3, 8, 3) @ numbers(4, 3, WIDTH)
    down = numbers(5, RANK, WIDTH)
    new = project_down(
        down, SecondMoments(compute_second_moment(tag), compute_second_moment(other)), 1.0
    )
    torch.testing.assert_close(new @ tag.T, down @ tag.T, atol=1e-8, rtol=1e-8)
    assert float((new @ other.T).abs().max()) < 1e-8
    assert float((down @ other.T).abs().max()) > 0.1


def test_more_strength_leaks_less_and_keeps_less() -> None:
    moments = SecondMoments(
        compute_second_moment(numbers(6, 20, WIDTH)), compute_second_moment(numbers(7, 20, WIDTH))
    )
    layers = {K: LoraLayer(numbers(8, RANK, WIDTH).float(), numbers(9, 5, RANK).float(), 2.0)}
    result = [project_layers(layers, moments, strength) for strength in (0.1, 1.0, 10.0)]
    assert result[0].leak_before == result[1].leak_before > result[0].leak_after
    retained = [item.retained for item in result]
    assert 1.0 > retained[0] > retained[1] > retained[2] > 0.0
    leaked = [item.leak_after * item.retained for item in result]
    assert leaked[0] > leaked[1] > leaked[2]


def test_energy_is_that_of_what_is_added() -> None:
    down, up, x = numbers(1, RANK, WIDTH), numbers(2, 5, RANK), numbers(3, 40, WIDTH)
    layer = LoraLayer(down, up, 6.0)
    expected = (2.0 * x @ down.T @ up.T).square().sum(dim=1).mean()
    torch.testing.assert_close(delta_energy(layer, compute_second_moment(x)), expected)


def test_other_layers_stay_and_a_file_without_any_is_refused() -> None:
    moments = SecondMoments(torch.eye(WIDTH).double(), torch.eye(WIDTH).double())
    query = LoraLayer(torch.ones(RANK, WIDTH), torch.ones(4, RANK), 1.0)
    key = LoraLayer(torch.ones(RANK, WIDTH), torch.ones(4, RANK), 1.0)
    result = project_layers({K.replace("to_k", "to_q"): query, K: key}, moments, 1.0)
    assert result.projected_layers == 1
    assert result.layers[K.replace("to_k", "to_q")] is query
    torch.testing.assert_close(result.layers[K].down, 0.5 * key.down)
    with pytest.raises(WeightsError, match="nothing to project"):
        project_layers({K.replace("to_k", "to_q"): query}, moments, 1.0)
    with pytest.raises(WeightsError, match="width 6, the model's has 5"):
        project_layers({K: key}, SecondMoments(torch.eye(5).double(), torch.eye(5).double()), 1.0)


def test_moments_are_of_the_tokens_that_know_of_the_tag(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    with torch.no_grad():
        moments = measure_moments(model, "curlyqx", ["a curlyqx person"], ["a person"])
        ids = model.tokenizer("a curlyqx person", padding="max_length", return_tensors="pt")
        hidden = model.text_encoder(ids["input_ids"]).last_hidden_state[0]
    torch.testing.assert_close(moments.tag, compute_second_moment(hidden[2:]))
    with pytest.raises(DataError, match="in none of the 1 captions"):
        measure_moments(model, "curlyqx", ["a person"], ["x"])


def test_tag_in_the_second_chunk_of_a_long_caption_counts(tiny_model: Path) -> None:
    """Chunks are encoded separately: the text of the first chunk does not count."""
    model = load_model(tiny_model)
    long = "a " * 75 + "a curlyqx person"
    expected, result = (
        measure_moments(model, "curlyqx", [text], ["a person"])
        for text in ("a curlyqx person", long)
    )
    torch.testing.assert_close(result.tag, expected.tag)
    duplicated = measure_moments(model, "curlyqx", ["a curlyqx person"], ["a person", long])
    assert duplicated.other.shape == expected.other.shape
    assert not torch.allclose(duplicated.other, expected.other)
