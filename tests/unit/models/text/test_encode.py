import warnings
from pathlib import Path

import pytest
import torch

from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.models.load import load_text_encoder, load_tokenizer
from lorasmith.models.text.encode import encode_hidden_states, tokenize, truncated_text


def test_short_text_is_not_truncated(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    assert truncated_text(tokenizer, "a red apple") == ""
    assert truncated_text(tokenizer, "") == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenize(tokenizer, ["a red apple", ""])
    assert ids.shape == (2, 77)
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[1, 1:] == tokenizer.eos_token_id).all()


def test_truncated_text_starts_after_the_last_token(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    num_tokens = len(tokenizer("a", add_special_tokens=False)["input_ids"])
    assert num_tokens == 1
    assert truncated_text(tokenizer, "a " * 75) == ""
    assert truncated_text(tokenizer, "a " * 75 + "b c") == "b c"
    with pytest.warns(LorasmithWarning, match=r"longer than 77 tokens; this was cut: 'b c'"):
        ids = tokenize(tokenizer, ["a " * 75 + "b c"])
    assert torch.equal(ids, tokenize(tokenizer, ["a " * 75]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(tokenizer, ["a " * 80], warn=False)


def test_clip_skip_is_the_normed_hidden_state_of_an_earlier_layer(tiny_model: Path) -> None:
    encoder = load_text_encoder(tiny_model).eval()
    ids = tokenize(load_tokenizer(tiny_model), ["a red apple"])
    with torch.no_grad():
        outputs = encoder(ids, output_hidden_states=True)
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        # Every one is normed, the last layer's too: clip skip 1 is the encoder's own output.
        for skip in (1, 2):
            torch.testing.assert_close(
                encode_hidden_states(encoder, ids, skip), norm(outputs.hidden_states[-skip])
            )
        assert torch.equal(encode_hidden_states(encoder, ids), outputs.last_hidden_state)
        assert not torch.allclose(
            encode_hidden_states(encoder, ids, 2), encode_hidden_states(encoder, ids, 1)
        )


@pytest.mark.parametrize("skip", [0, -1, 3])
def test_clip_skip_beyond_the_layers_is_refused(tiny_model: Path, skip: int) -> None:
    encoder = load_text_encoder(tiny_model)
    with pytest.raises(ConfigError, match="clip skip must be 1 to 2"):
        encode_hidden_states(encoder, torch.zeros(1, 77, dtype=torch.int64), skip)
