"""From prompts to token ids and embeddings."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from lorasmith.core.errors import ConfigError, LorasmithWarning

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from lorasmith.models.load import Model

_TEXTS_AT_ONCE = 32


class TokenIds(NamedTuple):
    """Texts as each text encoder reads them."""

    ids: torch.Tensor
    """int64 ``[B, 77]``, for the first text encoder that there is; ``[B, 77 * chunks]`` of texts in
    chunks."""
    ids_2: torch.Tensor | None = None
    """For SDXL's second encoder, whose tokenizer pads otherwise; None where there is one."""


class Conditioning(NamedTuple):
    """Texts as the U-Net reads them, with or without a batch dimension."""

    context: torch.Tensor
    """``[B, 77, width]``, in the text encoders' dtype; ``[B, 77 * chunks, width]`` of texts in
    chunks."""
    pooled: torch.Tensor | None = None
    """SDXL's summary of each text, ``[B, P]``; None for other models."""


def tokenize_texts(model: "Model", texts: Sequence[str], warn: bool = True) -> TokenIds:
    """Return the texts' tokens on the CPU; see `tokenize`."""
    ids = tokenize(model.main_tokenizer, texts, warn)
    if model.tokenizer is None or model.tokenizer_2 is None:
        return TokenIds(ids)
    return TokenIds(ids, tokenize(model.tokenizer_2, texts, warn=False))


def encode_tokens(model: "Model", tokens: TokenIds, clip_skip: int = 1) -> Conditioning:
    """Return what the U-Net is told about texts. Gradients flow to the text encoders.

    SD 1.x and 2.x: the last hidden states, normed. SDXL: the last but one hidden states of both
    encoders side by side, as they are, and the second encoder's projected summary. The SDXL
    refiner has the second encoder alone, and reads likewise. Each chunk of a text is encoded as a
    text of its own; the summary is the first one's.

    Args:
        model: its text encoders are used where they are.
        tokens: on the encoders' device.
        clip_skip: 1 as the model was trained, 2 one layer earlier, and so on.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    parts = [_window(model, one, clip_skip) for one in _windows(model, tokens)]
    if len(parts) == 1:
        return parts[0]
    return Conditioning(torch.cat([one.context for one in parts], dim=1), parts[0].pooled)


def _windows(model: "Model", tokens: TokenIds) -> list[TokenIds]:
    """Cut texts into chunks. The rows of each are those of the texts, as gates know them."""
    length = int(model.main_tokenizer.model_max_length)
    first = torch.split(tokens.ids, length, dim=1)
    if tokens.ids_2 is None:
        return [TokenIds(ids) for ids in first]
    second = torch.split(tokens.ids_2, length, dim=1)
    return [TokenIds(*pair) for pair in zip(first, second, strict=True)]


def _window(model: "Model", tokens: TokenIds, clip_skip: int) -> Conditioning:
    if model.text_encoder is None:
        return Conditioning(*_early(model.text_encoders[0], tokens.ids, clip_skip))
    if model.text_encoder_2 is None or tokens.ids_2 is None:
        return Conditioning(encode_hidden_states(model.text_encoder, tokens.ids, clip_skip))
    first, _ = _early(model.text_encoder, tokens.ids, clip_skip)
    second, output = _early(model.text_encoder_2, tokens.ids_2, clip_skip)
    return Conditioning(torch.cat([first, second], dim=-1), output)


@torch.no_grad()
def encode_captions(
    model: "Model", texts: Sequence[str], clip_skip: int = 1, warn: bool = True
) -> list[Conditioning]:
    """Return each text's conditioning, context ``[77, width]`` and pooled ``[P]`` or None.

    Everything is on the text encoders' device, in their dtype. Text that is cut off is warned
    about unless ``warn`` is false.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    found: list[Conditioning] = []
    device = model.text_encoders[0].device
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        tokens = tokenize_texts(model, texts[start : start + _TEXTS_AT_ONCE], warn)
        second = None if tokens.ids_2 is None else tokens.ids_2.to(device)
        context, pooled = encode_tokens(model, TokenIds(tokens.ids.to(device), second), clip_skip)
        summaries = [None] * len(context) if pooled is None else list(pooled)
        found += [Conditioning(*pair) for pair in zip(context, summaries, strict=True)]
    return found


def tokenize(tokenizer: "CLIPTokenizer", texts: Sequence[str], warn: bool = True) -> torch.Tensor:
    """Return padded token ids, int64 ``[len(texts), model_max_length]`` (77 for Stable Diffusion).

    Text beyond the limit is cut; with ``warn`` a warning shows what was.
    """
    limit = int(tokenizer.model_max_length)
    if warn:
        for text in texts:
            lost = truncated_text(tokenizer, text)
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


def truncated_text(tokenizer: "CLIPTokenizer", text: str) -> str:
    """Return the end of ``text`` that does not fit into the model's tokens, or ``""``."""
    ids = tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]
    room = int(tokenizer.model_max_length) - 2  # the start and the end token
    return str(tokenizer.decode(ids[room:])).strip() if len(ids) > room else ""


def encode_hidden_states(
    text_encoder: "CLIPTextModel", ids: torch.Tensor, clip_skip: int = 1
) -> torch.Tensor:
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


def _early(
    encoder: "CLIPTextModel | CLIPTextModelWithProjection", ids: torch.Tensor, clip_skip: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return hidden states ``[B, 77, width]`` before the last layer, and the projected summary."""
    layers = int(encoder.config.num_hidden_layers)
    if not 1 <= clip_skip < layers:
        raise ConfigError(f"clip skip must be 1 to {layers - 1} for this model, not {clip_skip}")
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-(clip_skip + 1)], getattr(output, "text_embeds", None)
