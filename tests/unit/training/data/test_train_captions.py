"""Captions of a training set, SDXL's extra conditioning, and held-out images."""

import warnings
from pathlib import Path

import pytest
import torch

from helpers.encode import encode_captions
from helpers.tiny_models import open_model
from helpers.training.datasets import built, data_of, take, write
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import make_generator
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.reading.row import Row
from lorasmith.models.model import Model
from lorasmith.models.text.encode import (
    Conditioning,
    TokenIds,
    encode_tokens,
    tokenize,
)
from lorasmith.models.text.long_prompts import encode_prompts, pad_conditioning
from lorasmith.models.text.prompt_spans import unweighted_prompt
from lorasmith.training.data.captions import captions
from lorasmith.training.data.captions.captions import CaptionEncoder
from lorasmith.training.data.captions.gating import caption_gating
from lorasmith.training.data.split import split_dataset, split_validation

# --- captions -------------------------------------------------------------------------------


def test_shuffled_captions_keep_the_first_parts(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)], "ink {}, b, c, d")
    dataset = built(model, data_of(folder, shuffle_caption=True))
    tokens = built(model, data_of(folder, shuffle_caption=True), encodes_text_in_step=True)
    texts = {
        text: encode_captions(model, [text])[0].context
        for text in ("ink 0, b, c, d", "ink 0, b, d, c", "ink 0, c, b, d",
                     "ink 0, c, d, b", "ink 0, d, b, c", "ink 0, d, c, b")
    }  # fmt: skip
    captions = set()
    for step in range(30):
        result = take(dataset, [0], step)
        (match,) = [t for t, c in texts.items() if torch.allclose(result.context[0], c, atol=1e-5)]
        assert torch.equal(take(tokens, [0], step).input_ids, tokenize(model.tokenizer, [match]))
        captions.add(match)
    assert len(captions) >= 5


@pytest.mark.parametrize("shuffle", [False, True])
def test_dropped_captions_are_empty(tmp_path: Path, model: Model, shuffle: bool) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 4)
    dataset = built(model, data_of(folder, caption_dropout_rate=0.5, shuffle_caption=shuffle))
    empty = encode_captions(model, [""])[0].context
    dropped = 0
    for step in range(20):
        context = take(dataset, [0, 1, 2, 3], step).context
        dropped += sum(torch.allclose(embedding, empty, atol=1e-5) for embedding in context)
    assert 25 < dropped < 55


def test_trained_text_encoder_gets_tokens(tmp_path: Path, model: Model, sdxl_model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 3)
    batch = take(built(model, data_of(folder), encodes_text_in_step=True), [2, 0])
    captions = ["picture 2, ink", "picture 0, ink"]
    assert torch.equal(batch.input_ids, tokenize(model.tokenizer, captions))
    assert (batch.context, batch.input_ids_2) == (None, None)
    batch = take(built(sdxl_model, data_of(folder), encodes_text_in_step=True), [2, 0])
    assert torch.equal(batch.input_ids_2, tokenize(sdxl_model.tokenizer_2, captions))


def test_contexts_have_the_precision_of_the_network(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)])
    batch = take(built(model, data_of(folder), precision="bf16"), [0])
    assert batch.context.dtype == torch.bfloat16
    assert batch.latents.dtype == torch.float32


# --- long captions --------------------------------------------------------------------------


LONG = "picture {}, ink, " + "a " * 66 + ", red apple, " + "b " * 40
"""Two chunks, the first of which ends behind the comma."""


@pytest.mark.parametrize("chunks", [1, 2])
def test_captions_that_are_cut_off_are_named_once(
    tmp_path: Path, model: Model, chunks: int
) -> None:
    folder = write(tmp_path / "p", [(64, 64)] * 5, "ink " + "word " * 100 + "end")
    with pytest.warns(LorasmithWarning) as reported:
        dataset = built(model, data_of(folder, max_token_length=75 * chunks))
    (message,) = [str(warning.message) for warning in reported]
    assert message.startswith(
        f"5 captions are longer than data.max_token_length = {75 * chunks} tokens"
    )
    assert all(f"0{index}.png from 'word word word word' on" in message for index in range(3))
    assert "and 2 more; shorten them or raise it" in message
    assert take(dataset, [0]).context.shape[1] == 77 * chunks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(model, data_of(folder))


@pytest.mark.parametrize("family", ["tiny_model", "tiny_sdxl"])
@pytest.mark.parametrize("trained", [False, True])
def test_long_captions_are_read_as_prompts_are(
    tmp_path: Path, family: str, trained: bool, request: pytest.FixtureRequest
) -> None:
    """Embedded in advance or in the step: equal to the pipeline's, with empty chunks at the end."""
    encoder = open_model(request.getfixturevalue(family))
    folder = write(tmp_path / "p", [(64, 64)] * 3)
    (folder / "01.txt").write_text(LONG.format(1))
    dataset = built(
        encoder, data_of(folder, caption_dropout_rate=0.5), encodes_text_in_step=trained
    )
    texts = [LONG.format(1), "picture 2, ink", ""]
    long, short, empty = encode_prompts(encoder, [unweighted_prompt(text) for text in texts])
    expected_contexts = [
        long,
        pad_conditioning(short, empty, 154),
        pad_conditioning(empty, empty, 154),
    ]
    found_variants = set()
    for step in range(8):
        batch = take(dataset, [1, 2], step)
        result = Conditioning(batch.context, batch.pooled)
        if trained:
            assert batch.input_ids.shape == (2, 154)
            result = encode_tokens(encoder, TokenIds(batch.input_ids, batch.input_ids_2))
        for position in range(2):
            dropped = torch.allclose(
                result.context[position], expected_contexts[2].context, atol=1e-5
            )
            found_variants.add((position, dropped))
            expected = expected_contexts[2 if dropped else position]
            torch.testing.assert_close(
                result.context[position], expected.context, atol=1e-5, rtol=1e-4
            )
            if expected.pooled is not None:
                torch.testing.assert_close(
                    result.pooled[position], expected.pooled, atol=1e-5, rtol=1e-4
                )
    assert len(found_variants) == 4


def test_shuffled_long_captions_always_have_room(tmp_path: Path, model: Model) -> None:
    parts = ["a " * 30, "b " * 30, "c " * 30, "d " * 50]
    folder = write(tmp_path / "p", [(64, 64)], "ink {}, " + ", ".join(parts))
    dataset = built(model, data_of(folder, shuffle_caption=True), encodes_text_in_step=True)
    special_ids = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    counts = set()
    for step in range(12):
        ids = take(dataset, [0], step).input_ids
        assert ids.shape == (1, 77 * 3)
        counts.add(sum(token not in special_ids for token in ids[0].tolist()))
    assert len(counts) == 1


def test_chunk_is_encoded_once_and_short_captions_keep_their_entries(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def embed_counted(encoder: CaptionEncoder, tokens: TokenIds) -> Conditioning:
        encoded.append(len(tokens.ids))
        return embed(encoder, tokens)

    embed = CaptionEncoder.embed
    monkeypatch.setattr(CaptionEncoder, "embed", embed_counted)
    folder = write(tmp_path / "p", [(64, 64)] * 4)
    before = take(built(model, data_of(folder)), [2]).context
    assert encoded == [4]
    (folder / "01.txt").write_text(LONG.format(1))
    after = take(built(model, data_of(folder)), [2]).context
    assert encoded == [4, 3]  # both of the long caption, and the empty one
    assert torch.equal(after[:, :77], before)


def test_token_gates_find_the_tag_in_every_chunk(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(64, 64)], "ink {}, " + "a " * 90 + ", ink")
    gating = caption_gating(model, GateMetadata("token+end", "ink"), ())
    batch = take(built(model, data_of(folder), encodes_text_in_step=True, gating=gating), [0])
    positions, ids = batch.token_mask[0, 0], batch.input_ids[0]
    tag = model.tokenizer("ink", add_special_tokens=False)["input_ids"]
    end = positions & (ids == model.tokenizer.eos_token_id)
    assert ids[positions & ~end].tolist() == tag * 2
    assert [bool(part.any()) for part in torch.split(end, 77)] == [True, True]


# --- SDXL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
def test_sdxl_gets_sizes_and_a_pooled_text(tmp_path: Path, sdxl_model: Model, live: bool) -> None:
    folder = write(tmp_path / "p", [(100, 64), (64, 64)])
    dataset = built(sdxl_model, data_of(folder, buckets=False, color_jitter=1e-6 if live else 0.0))
    batch = take(dataset, [0, 1])
    assert batch.time_ids.tolist() == [[64, 100, 0, 18, 64, 64], [64, 64, 0, 0, 64, 64]]
    expected = encode_captions(sdxl_model, ["picture 0, ink", "picture 1, ink"])
    torch.testing.assert_close(
        batch.context, torch.stack([conditioning.context for conditioning in expected])
    )
    torch.testing.assert_close(
        batch.pooled, torch.stack([conditioning.pooled for conditioning in expected])
    )


@pytest.mark.parametrize("crop", ["center", "random"])
def test_flipped_sdxl_images_have_the_flipped_crop_in_their_time_ids(
    tmp_path: Path, sdxl_model: Model, crop: str
) -> None:
    folder = write(tmp_path / "p", [(101, 64)])
    dataset = built(sdxl_model, data_of(folder, buckets=False, flip_aug=True, crop=crop))
    lefts = {int(take(dataset, [0], step).time_ids[0, 3]) for step in range(30)}
    if crop == "center":
        assert lefts == {18, 19}  # 37 pixels of room: one of them more on the one side
    else:
        assert len(lefts) > 10
        assert max(lefts) <= 37


# --- validation images ----------------------------------------------------------------------


def rows_of(count: int) -> list[Row]:
    return [Row(f"{n}.png", ("a",), {}, Path("x")) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(23, None, 0), (24, None, 2), (60, None, 5), (30, 0.0, 0), (30, 0.1, 3), (3, 0.01, 1)],
)
def test_validation_share_gives_the_number_of_images(
    count: int, share: float | None, expected: int
) -> None:
    learned, measured = split_validation(rows_of(count), share)
    assert len(measured) == expected
    assert sorted(map(str, [*learned, *measured])) == sorted(map(str, rows_of(count)))


def test_validation_split_follows_the_file_names() -> None:
    rows = rows_of(100)
    _, before = split_validation(rows, 0.1)
    _, reversed_split = split_validation(rows[::-1], 0.1)
    assert {row.key for row in reversed_split} == {row.key for row in before}
    removed = next(row for row in rows if row not in before)
    _, after = split_validation([row for row in rows if row is not removed], 0.1)
    assert {row.key for row in after} <= {row.key for row in before}


def test_validating_on_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.validation_split: 0\.9 of 1 images leaves none"):
        split_validation(rows_of(1), 0.9)


def test_validation_images_are_separate_and_never_augmented(tmp_path: Path, model: Model) -> None:
    folder = write(tmp_path / "p", [(128, 64)] * 8, "ink {}, b, c, d")
    more = {"crop": "random", "flip_aug": True, "color_jitter": 0.3, "shuffle_caption": True}
    data = data_of(folder, validation_split=0.25, caption_dropout_rate=0.5, **more)
    chosen = split_dataset(data)
    dataset = built(model, data, split=chosen)
    validation_set = dataset.validation
    assert validation_set is not None
    assert len(validation_set.rows) == 2
    assert {row.key for row in validation_set.rows}.isdisjoint(row.key for row in dataset.rows)
    indices = torch.arange(len(validation_set.rows))
    first, second = (
        take(validation_set, indices.tolist(), 1),
        take(validation_set, indices.tolist(), 1),
    )
    assert torch.equal(first.latents, second.latents)
    texts = [row.caption for row in validation_set.rows]
    expected = torch.stack([part.context for part in encode_captions(model, texts)])
    torch.testing.assert_close(first.context, expected, rtol=1e-4, atol=1e-5)
    plain = built(model, data_of(folder, validation_split=0.25), split=chosen)
    torch.testing.assert_close(first.latents, take(plain.validation, indices.tolist(), 1).latents)


@pytest.mark.parametrize("dropout", [0.0, 0.6])
def test_large_embedding_table_stays_on_the_cpu_and_gives_the_same_batches(
    dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = captions.TextBatch(
        torch.randn(4, 7, 3), torch.randn(4, 5), token_mask=torch.rand(4, 1, 7) > 0.5
    )
    indices = torch.tensor([3, 0, 4, 2, 2])
    result = []
    for limit in (2**30, 0):
        monkeypatch.setattr(captions, "_MAX_RESIDENT_BYTES", limit)
        cached = captions.CachedCaptions(table, [0, 1, 2, 0, 1], dropout, torch.device("cpu"))
        result.append(cached.gather(indices, BatchRng(make_generator(5), 5)))
    for actual, expected in zip(*result, strict=True):
        assert (actual is None) == (expected is None)
        assert actual is None or torch.equal(actual, expected)
    assert result[0].context is not None
    dropped = sum(torch.equal(row, table.context[3]) for row in result[0].context)
    assert (dropped > 0) == (dropout > 0)
