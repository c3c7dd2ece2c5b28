"""From prompts to token ids and embeddings."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from lorasmith.core.errors import ConfigError, LorasmithWarning

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from lorasmith.models.model import Model


class TokenIds(NamedTuple):
    """Token ids for each text encoder."""

    ids: torch.Tensor
    """For the first text encoder, int64 ``[B, 77 * chunks]``."""
    ids_2: torch.Tensor | None = None
    """For SDXL's second encoder, whose tokenizer pads differently; None for one encoder."""


class Conditioning(NamedTuple):
    """Text embeddings for the U-Net, with or without a batch dimension."""

    context: torch.Tensor
    """For cross-attention, ``[B, 77 * chunks, width]`` in the text encoders' dtype."""
    pooled: torch.Tensor | None = None
    """SDXL's pooled embedding, ``[B, P]``; None for other models."""


def tokenize_texts(model: "Model", texts: Sequence[str], warn: bool = True) -> TokenIds:
    """Return the texts' tokens on the CPU; see `tokenize`."""
    ids = tokenize(model.main_tokenizer, texts, warn)
    if model.tokenizer is None or model.tokenizer_2 is None:
        return TokenIds(ids)
    return TokenIds(ids, tokenize(model.tokenizer_2, texts, warn=False))


def encode_tokens(model: "Model", tokens: TokenIds, clip_skip: int = 1) -> Conditioning:
    """Encode tokens for the U-Net. Gradients flow to the text encoders.

    SD 1.x and 2.x: the last hidden states after the final norm. SDXL: the penultimate hidden states
    of both encoders, concatenated, and the second encoder's projected pooled embedding; its refiner
    has the second encoder only. Chunks are encoded separately; the pooled embedding is the first
    chunk's.

    Args:
        model: its text encoders are used on their device.
        tokens: on the same device.
        clip_skip: 1 for the layer that the model was trained with, 2 for the one before, and so on.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    windows = [_encode_window(model, window, clip_skip) for window in _split_windows(model, tokens)]
    if len(windows) == 1:
        return windows[0]
    return Conditioning(torch.cat([window.context for window in windows], dim=1), windows[0].pooled)


def _split_windows(model: "Model", tokens: TokenIds) -> list[TokenIds]:
    """Split token ids into windows of 77; their rows stay in the order of the texts."""
    length = int(model.main_tokenizer.model_max_length)
    first = torch.split(tokens.ids, length, dim=1)
    if tokens.ids_2 is None:
        return [TokenIds(ids) for ids in first]
    second = torch.split(tokens.ids_2, length, dim=1)
    return [TokenIds(*pair) for pair in zip(first, second, strict=True)]


def _encode_window(model: "Model", tokens: TokenIds, clip_skip: int) -> Conditioning:
    if model.text_encoder is None:
        return Conditioning(*_encode_penultimate(model.text_encoders[0], tokens.ids, clip_skip))
    if model.text_encoder_2 is None or tokens.ids_2 is None:
        return Conditioning(encode_hidden_states(model.text_encoder, tokens.ids, clip_skip))
    first, _ = _encode_penultimate(model.text_encoder, tokens.ids, clip_skip)
    second, output = _encode_penultimate(model.text_encoder_2, tokens.ids_2, clip_skip)
    return Conditioning(torch.cat([first, second], dim=-1), output)


def tokenize(tokenizer: "CLIPTokenizer", texts: Sequence[str], warn: bool = True) -> torch.Tensor:
    """Return padded token ids, int64 ``[len(texts), model_max_length]`` (77 for Stable Diffusion).

    Longer texts are truncated; with ``warn`` a warning shows what is lost.
    """
    limit = int(tokenizer.model_max_length)
    if warn:
        for text in texts:
            truncated = truncated_text(tokenizer, text)
            if truncated:
                warnings.warn(
                    f"the prompt is longer than {limit} tokens; this was cut: {truncated!r}",
                    LorasmithWarning,
                    stacklevel=2,
                )
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


def truncated_text(tokenizer: "CLIPTokenizer", text: str) -> str:
    """Return the end of ``text`` that does not fit into the tokenizer's length, or ``""``."""
    ids = tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]
    capacity = int(tokenizer.model_max_length) - 2  # the start and the end token
    return str(tokenizer.decode(ids[capacity:])).strip() if len(ids) > capacity else ""


def encode_hidden_states(
    text_encoder: "CLIPTextModel", ids: torch.Tensor, clip_skip: int = 1
) -> torch.Tensor:
    """Return the last hidden states, ``[B, 77, width]``, in the encoder's dtype.

    Args:
        text_encoder: a CLIP text encoder.
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


def _encode_penultimate(
    encoder: "CLIPTextModel | CLIPTextModelWithProjection", ids: torch.Tensor, clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return hidden states ``[B, 77, width]`` before the last layer, and the pooled embedding."""
    layers = int(encoder.config.num_hidden_layers)
    if not 1 <= clip_skip < layers:
        raise ConfigError(f"clip skip must be 1 to {layers - 1} for this model, not {clip_skip}")
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-(clip_skip + 1)], getattr(output, "text_embeds", None)
