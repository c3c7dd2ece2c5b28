"""The prompts of a call, encoded under the gates of the LoRAs that change text encoders."""

from dataclasses import dataclass

import torch

from lorasmith.inference.loras.active_lora import ActiveLora
from lorasmith.inference.loras.router import LoraRouter
from lorasmith.inference.prompts.parse_prompt import Prompt
from lorasmith.models.model import Model
from lorasmith.models.text.encode import Conditioning
from lorasmith.models.text.long_prompts import (
    encode_prompts,
    pad_conditioning,
    prompt_token_ids,
    warn_if_too_long,
    zeroes_empty_prompt,
)
from lorasmith.models.text.prompt_spans import EMPTY_PROMPT, WeightedPrompt


@dataclass(frozen=True)
class EncodedPrompts:
    """The texts of a call as the networks read them."""

    negative_prompt: WeightedPrompt
    embeds: dict[tuple[Prompt, int], tuple[Conditioning, Conditioning]]
    """For each prompt and phase: the negative prompt and the prompt, equally long."""
    token_ids: dict[WeightedPrompt, torch.Tensor]
    """Of each text, and of the empty one, int64 ``[77 * chunks]`` on the CPU."""

    def num_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the texts of a prompt's images have."""
        return max(len(self.token_ids[text]) for text in (self.negative_prompt, prompt.weighted))

    def batch_texts(self, prompts: list[Prompt], uses_guidance: bool) -> list[WeightedPrompt]:
        """Return the texts of a batch's rows; under guidance the negative prompt's come first."""
        texts = [prompt.weighted for prompt in prompts]
        return [self.negative_prompt] * len(prompts) + texts if uses_guidance else texts

    def batch_token_ids(self, texts: list[WeightedPrompt]) -> torch.Tensor:
        """Return the tokens of texts, int64 ``[len(texts), L]``.

        Shorter texts are followed by empty chunks.
        """
        length = max(len(self.token_ids[text]) for text in [self.negative_prompt, *texts])
        return torch.stack([self._padded_token_ids(text, length) for text in texts])

    def _padded_token_ids(self, text: WeightedPrompt, length: int) -> torch.Tensor:
        ids, empty_chunk = self.token_ids[text], self.token_ids[EMPTY_PROMPT]
        return torch.cat([ids, *[empty_chunk] * ((length - len(ids)) // len(empty_chunk))])


def encode_routed_prompts(
    model: Model, router: LoraRouter, negative: Prompt, clip_skip: int, warn: bool = True
) -> EncodedPrompts:
    """Encode every prompt, and the negative one for each, under the gates of its images.

    Both texts of an image get as many chunks as the longer one has: the other is followed by empty
    chunks.

    Args:
        model: with the router's LoRAs in it.
        router: knows the prompts.
        negative: the call's negative prompt.
        clip_skip: see `encode_prompts`.
        warn: warn of texts that are longer than the model was trained to read.

    Raises:
        ConfigError: ``clip_skip`` names a layer that does not exist.
    """
    tokenizer = model.main_tokenizer
    texts = list(dict.fromkeys([negative.weighted, *(p.weighted for p in router.prompts)]))
    if warn:
        warn_if_too_long(tokenizer, negative.weighted, "negative prompt")
        for text in dict.fromkeys(prompt.weighted for prompt in router.prompts):
            warn_if_too_long(tokenizer, text, "prompt")
    token_ids = {text: prompt_token_ids(tokenizer, text) for text in [*texts, EMPTY_PROMPT]}
    needs_padding = len({len(token_ids[text]) for text in texts}) > 1
    if needs_padding and EMPTY_PROMPT not in texts:
        texts.append(EMPTY_PROMPT)
    embeds: dict[tuple[Prompt, int], tuple[Conditioning, Conditioning]] = {}
    for loras, prompt_phases in _group_by_text_loras(router).items():
        router.open_only(loras)
        # Without LoRAs all texts are encoded, which is the base model's batch.
        needed = {negative.weighted, EMPTY_PROMPT, *(p.weighted for p, _ in prompt_phases)}
        batch = [text for text in texts if text in needed or not loras]
        encoded = dict(zip(batch, encode_prompts(model, batch, clip_skip), strict=True))
        for prompt, phase in prompt_phases:
            embeds[prompt, phase] = _pair(model, negative, prompt, encoded)
    return EncodedPrompts(negative.weighted, embeds, token_ids)


def _group_by_text_loras(
    router: LoraRouter,
) -> dict[tuple[ActiveLora, ...], list[tuple[Prompt, int]]]:
    """Group prompts and phases by the active LoRAs that change text encoders."""
    groups: dict[tuple[ActiveLora, ...], list[tuple[Prompt, int]]] = {}
    for prompt in router.prompts:
        for phase in router.phase_starts:
            active = router.active_loras(prompt, phase)
            loras = tuple(lora for lora in active if lora.attached.affects_text_encoder)
            groups.setdefault(loras, []).append((prompt, phase))
    return groups


def _pair(
    model: Model,
    negative_prompt: Prompt,
    prompt: Prompt,
    encoded: dict[WeightedPrompt, Conditioning],
) -> tuple[Conditioning, Conditioning]:
    """Return the negative prompt and the prompt of an image, equally long."""
    negative, positive = encoded[negative_prompt.weighted], encoded[prompt.weighted]
    if len(negative.context) != len(positive.context):
        length = max(len(negative.context), len(positive.context))
        empty = encoded[EMPTY_PROMPT]
        negative = pad_conditioning(negative, empty, length)
        positive = pad_conditioning(positive, empty, length)
    if not negative_prompt.text.strip() and zeroes_empty_prompt(model):
        pooled = None if negative.pooled is None else torch.zeros_like(negative.pooled)
        negative = Conditioning(torch.zeros_like(negative.context), pooled)
    return negative, positive
