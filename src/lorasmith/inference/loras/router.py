"""Which LoRA is at work for which picture: every picture of a batch under the gates of its prompt.

A LoRA may be wanted for some of the denoising steps only. Steps with the same LoRAs at work are a
phase, which is named by its first step; the first one of all is 1.

A gate never changes the shape of a batch. Pictures that no LoRA is at work for are therefore
computed as in a batch of the base model, bit for bit: their rows are not touched, and their texts
are encoded together with all others' while every gate is shut.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from lorasmith.adapters.gating.token_mask import selects_tokens, token_mask
from lorasmith.adapters.gating.trigger_tokens import has_tag
from lorasmith.core.errors import LorasmithWarning
from lorasmith.inference.prompts.parser import LoraRequest, Prompt
from lorasmith.models.load import Model
from lorasmith.models.text.encode import Conditioning
from lorasmith.models.text.long_prompts import (
    encode_prompts,
    pad_conditioning,
    prompt_token_ids,
    warn_if_too_long,
    zeroes_empty_prompt,
)
from lorasmith.models.text.prompt_spans import EMPTY_PROMPT, WeightedPrompt

if TYPE_CHECKING:
    from lorasmith.adapters.nn.inject import AttachedLora


@dataclass(eq=False)
class ActiveLora:
    """A LoRA that sits in the model."""

    request: LoraRequest
    """Its name and weight."""
    attached: "AttachedLora"
    """Its adapters."""
    requested_by: Literal["prompt", "call", "library", "trainer"]
    """Who wants it: the prompts that mention it, the call for all of its pictures, a library for
    prompts with its tag, a training that looks at what it has so far."""
    obeys_gate: bool = True
    """Whether its gate is obeyed."""

    def is_requested_for(self, prompt: Prompt) -> bool:
        """Tell whether it was named for a prompt, whatever its gate says."""
        return self.requested_by in ("call", "trainer") or self.request in prompt.loras


class LoraLibrary(Protocol):
    """A library, as far as a call knows it."""

    def activate_for(self, text: str, named: Sequence[ActiveLora]) -> Sequence[ActiveLora]:
        """Return the LoRAs that wake for a text besides those that are named for it."""
        ...


class LoraRouter:
    """The LoRAs of one call."""

    def __init__(
        self,
        model: Model,
        named: Sequence[ActiveLora],
        library: LoraLibrary | None,
        prompts: Iterable[Prompt],
        gate: bool = True,
        steps: int = 1,
    ) -> None:
        """Decide which LoRAs are at work for which prompts.

        One warning is given for each LoRA that was named and stays off.

        Args:
            model: the model that they are in.
            named: those that somebody named.
            library: may wake others.
            prompts: all prompts of the call.
            gate: False has those that were named at work whatever their gates say.
            steps: of the call.

        Raises:
            WeightsError: what the library should wake is not clear or does not fit the model.
        """
        self._model = model
        self._gate = gate
        self._at_work: dict[Prompt, tuple[ActiveLora, ...]] = {}
        for prompt in dict.fromkeys(prompts):
            meant = [switch for switch in named if switch.is_requested_for(prompt)]
            on = [switch for switch in meant if self._is_opened(switch, prompt.text)]
            woken = library.activate_for(prompt.text, meant) if library else ()
            self._at_work[prompt] = (*on, *woken)
        everything = [switch for at_work in self._at_work.values() for switch in at_work]
        self._switches = tuple(dict.fromkeys([*named, *everything]))
        self.phase_starts = _phases((switch.request for switch in everything), steps)
        """Each phase by its first step, in order."""
        for switch in named:
            self._tell_if_off(switch)
        for switch in dict.fromkeys(everything):
            _tell_if_late(switch.request, steps)

    def active_loras(self, prompt: Prompt, phase: int | None = None) -> tuple[ActiveLora, ...]:
        """Return the LoRAs that are at work for a prompt: in a phase, or None, at any time."""
        everything = self._at_work[prompt]
        return tuple(one for one in everything if phase is None or one.request.is_active_at(phase))

    def encode_prompts(
        self, negative: Prompt, clip_skip: int, warn: bool = True
    ) -> "EncodedPrompts":
        """Embed every prompt, and the negative one for each, under the gates of its pictures.

        Both texts of a picture get as many chunks as the longer one has: the other is followed by
        empty ones.

        Args:
            negative: of the call.
            clip_skip: see `encode_prompts`.
            warn: warn of texts that are longer than the model was taught to read.

        Raises:
            ConfigError: ``clip_skip`` names a layer that does not exist.
        """
        if warn:
            warn_if_too_long(self._model.main_tokenizer, negative.weighted, "negative prompt")
            for passage in dict.fromkeys(prompt.weighted for prompt in self._at_work):
                warn_if_too_long(self._model.main_tokenizer, passage, "prompt")
        texts = list(dict.fromkeys([negative.weighted, *(p.weighted for p in self._at_work)]))
        tokens = {
            one: prompt_token_ids(self._model.main_tokenizer, one) for one in [*texts, EMPTY_PROMPT]
        }
        if (
            any(len(tokens[one]) != len(tokens[texts[0]]) for one in texts)
            and EMPTY_PROMPT not in texts
        ):
            texts.append(EMPTY_PROMPT)  # what shorter texts are filled up with
        groups: dict[tuple[ActiveLora, ...], list[tuple[Prompt, int]]] = {}
        for prompt in self._at_work:
            for phase in self.phase_starts:
                at_work = self.active_loras(prompt, phase)
                changing = tuple(
                    switch for switch in at_work if switch.attached.affects_text_encoder
                )
                groups.setdefault(changing, []).append((prompt, phase))
        pairs: dict[tuple[Prompt, int], tuple[Conditioning, Conditioning]] = {}
        for changing, moments in groups.items():
            for switch in self._switches:
                _set(switch, switch in changing)
            # Where nothing changes them all texts are encoded, which is the base model's batch.
            own = {negative.weighted, EMPTY_PROMPT, *(prompt.weighted for prompt, _ in moments)}
            some = [one for one in texts if one in own or not changing]
            found = encode_prompts(self._model, some, clip_skip)
            embedded = dict(zip(some, found, strict=True))
            pairs |= {one: self._pair(negative, one[0], embedded) for one in moments}
        return EncodedPrompts(negative.weighted, pairs, tokens)

    def _pair(
        self, negative: Prompt, prompt: Prompt, embedded: dict[WeightedPrompt, Conditioning]
    ) -> tuple[Conditioning, Conditioning]:
        """Return what both texts of a picture say, equally long."""
        unwanted, wanted = embedded[negative.weighted], embedded[prompt.weighted]
        length = max(len(unwanted.context), len(wanted.context))
        if len(unwanted.context) != len(wanted.context):
            empty = embedded[EMPTY_PROMPT]
            unwanted, wanted = (pad_conditioning(one, empty, length) for one in (unwanted, wanted))
        if not negative.text.strip() and zeroes_empty_prompt(self._model):
            summary = unwanted.pooled
            unwanted = Conditioning(
                torch.zeros_like(unwanted.context),
                None if summary is None else torch.zeros_like(summary),
            )
        return unwanted, wanted

    def set_gates(
        self, prompts: Sequence[Prompt], texts: "EncodedPrompts", both: bool, phase: int = 1
    ) -> None:
        """Set every gate for the coming batches of the U-Net.

        Args:
            prompts: of the batch's pictures, all of one `Texts.length`.
            texts: of this call.
            both: whether the batch holds each picture twice: all under the negative prompt, then
                all under their own. What is decided for a picture holds for both.
            phase: of the batches.
        """
        device = self._model.unet.device
        read = [prompt.weighted for prompt in prompts]
        if both:
            read = [texts.negative_prompt] * len(prompts) + read
        length = max(texts.num_tokens(prompt) for prompt in prompts)
        ids = torch.stack([texts.padded_token_ids(one, length) for one in read])
        for switch in self._switches:
            rows = [switch in self.active_loras(prompt, phase) for prompt in prompts]
            tokens = self._token_mask(switch, ids)
            switch.attached.gate.set_rows(
                rows * 2 if both else rows, device, None if tokens is None else tokens.to(device)
            )

    def _is_obeyed(self, switch: ActiveLora) -> bool:
        """Tell whether a LoRA's gate counts."""
        if switch.requested_by == "library":
            return True
        return self._gate and switch.obeys_gate and switch.attached.gate_metadata.kind != "none"

    def _is_opened(self, switch: ActiveLora, text: str) -> bool:
        """Tell whether a LoRA is at work for a text: its gate lets it, and its weight is not 0."""
        if switch.request.is_zero:
            return False
        if not self._is_obeyed(switch):
            return True
        return has_tag(self._model.main_tokenizer, switch.attached.gate_metadata.tag, text)

    def _token_mask(self, switch: ActiveLora, ids: torch.Tensor) -> torch.Tensor | None:
        """Return the tokens that a LoRA may write to, bool ``[B, L]``, or None for all."""
        gate = switch.attached.gate_metadata
        if not selects_tokens(gate) or not self._is_obeyed(switch):
            return None
        return token_mask(self._model.main_tokenizer, gate, ids)

    def _tell_if_off(self, switch: ActiveLora) -> None:
        if switch.requested_by == "trainer" or switch.request.is_zero:
            return
        on = [switch in self._at_work[p] for p in self._at_work if switch.is_requested_for(p)]
        # One that is named for all pictures may well be meant for some of several prompts.
        if all(on) or (switch.requested_by == "call" and any(on)):
            return
        warnings.warn(
            f"LoRA {switch.request.name} stays off: its tag {switch.attached.gate_metadata.tag!r} is not "
            "in the prompt; write it there or use --no-gate (gate=False in Python)",
            LorasmithWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class EncodedPrompts:
    """The texts of a call as the networks read them."""

    negative_prompt: WeightedPrompt
    """The negative prompt."""
    embeds: dict[tuple[Prompt, int], tuple[Conditioning, Conditioning]]
    """What the negative prompt and each prompt say to the U-Net in each phase."""
    token_ids: dict[WeightedPrompt, torch.Tensor]
    """Token ids of each text, and of the empty one, int64 ``[77 * chunks]`` on the CPU."""

    def num_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the texts of a prompt's pictures have."""
        return max(len(self.token_ids[one]) for one in (self.negative_prompt, prompt.weighted))

    def padded_token_ids(self, text: WeightedPrompt, length: int) -> torch.Tensor:
        """Return a text's tokens with empty chunks behind it, int64 ``[length]``."""
        own, empty = self.token_ids[text], self.token_ids[EMPTY_PROMPT]
        return torch.cat([own, *[empty] * ((length - len(own)) // len(empty))])


def _phases(mentions: Iterable[LoraRequest], steps: int) -> tuple[int, ...]:
    """Return the first step of each phase."""
    firsts = {1}
    for one in mentions:
        firsts |= {one.start, steps + 1 if one.stop is None else one.stop + 1}
    return tuple(sorted(first for first in firsts if first <= steps))


def _tell_if_late(mention: LoraRequest, steps: int) -> None:
    if mention.start > steps:
        warnings.warn(
            f"LoRA {mention.name} stays off: it is to start at step {mention.start} and there are "
            f"{steps}; take more steps or an earlier start",
            LorasmithWarning,
            stacklevel=3,
        )


def _set(switch: ActiveLora, on: bool) -> None:
    if on:
        switch.attached.gate.open()
    else:
        switch.attached.gate.close()
