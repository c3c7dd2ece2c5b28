"""From prompts to token ids and embeddings."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorasmith.core.errors import ConfigError, LorasmithWarning

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def tokenize(tokenizer: "CLIPTokenizer", texts: Sequence[str], warn: bool = True) -> torch.Tensor:
    """Return padded token ids, int64 ``[len(texts), model_max_length]`` (77 for Stable Diffusion).

    Text beyond the limit is cut; with ``warn`` a warning shows what was.
    """
    limit = int(tokenizer.model_max_length)
    if warn:
        for text in texts:
            lost = cut_text(tokenizer, text)
            if lost:
                warnings.warn(
                    f"the prompt is longer than {limit} tokens; this was cut: {lost!r}",
                    LorasmithWarning,
                    stacklevel=2,
                )
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


def cut_text(tokenizer: "CLIPTokenizer", text: str) -> str:
    """Return the end of ``text`` that does not fit into the model's tokens, or ``""``."""
    ids = tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]
    room = int(tokenizer.model_max_length) - 2  # the start and the end token
    return str(tokenizer.decode(ids[room:])).strip() if len(ids) > room else ""


def encode(text_encoder: "CLIPTextModel", ids: torch.Tensor, clip_skip: int = 1) -> torch.Tensor:
    """Return the last hidden states, ``[B, 77, width]``, in the encoder's dtype.

    Args:
        text_encoder: the text tower.
        ids: int64 ``[B, 77]`` on its device.
        clip_skip: 1 uses the last layer, 2 the one before it, and so on (A1111's counting);
            the final layer norm is applied to each.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    layers = int(text_encoder.config.num_hidden_layers)
    if not 1 <= clip_skip <= layers:
        raise ConfigError(f"clip skip must be 1 to {layers} for this model, not {clip_skip}")
    if clip_skip == 1:
        hidden: torch.Tensor = text_encoder(ids).last_hidden_state
        return hidden
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 dropped the level
    normed: torch.Tensor = inner.final_layer_norm(states[-clip_skip])
    return normed
