"""Which LoRA is at work for which picture: every picture of a batch under the gates of its prompt.

A gate never changes the shape of a batch. Pictures that no LoRA is at work for are therefore
computed as in a batch of the base model, bit for bit: their rows are not touched, and their texts
are encoded together with all others' while every gate is shut.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from lorasmith.adapters.tags import end_places, has_tag, tag_places
from lorasmith.core.errors import LorasmithWarning
from lorasmith.inference.prompt import LoraMention, Prompt
from lorasmith.models.load import Model
from lorasmith.models.text import Conditioning, encode_captions, token_ids

if TYPE_CHECKING:
    from lorasmith.adapters.inject import Attached


@dataclass(eq=False)
class Switch:
    """A LoRA that sits in the model."""

    mention: LoraMention
    """Its name and weight."""
    attached: "Attached"
    """Its adapters."""
    named_by: Literal["prompt", "call", "library", "trainer"]
    """Who wants it: the prompts that mention it, the call for all of its pictures, a library for
    prompts with its tag, a training that looks at what it has so far."""
    gated: bool = True
    """Whether its gate is obeyed."""

    def is_meant(self, prompt: Prompt) -> bool:
        """Tell whether it was named for a prompt, whatever its gate says."""
        return self.named_by in ("call", "trainer") or self.mention in prompt.loras


class Wakes(Protocol):
    """A library, as far as a call knows it."""

    def awake(self, text: str, named: Sequence[Switch]) -> Sequence[Switch]:
        """Return the LoRAs that wake for a text besides those that are named for it."""
        ...


class Switchboard:
    """The LoRAs of one call."""

    def __init__(
        self,
        model: Model,
        named: Sequence[Switch],
        library: Wakes | None,
        prompts: Iterable[Prompt],
        gate: bool = True,
    ) -> None:
        """Decide which LoRAs are at work for which prompts.

        One warning is given for each LoRA that was named and stays off.

        Args:
            model: the model that they are in.
            named: those that somebody named.
            library: may wake others.
            prompts: all prompts of the call.
            gate: False has those that were named at work whatever their gates say.

        Raises:
            WeightsError: what the library should wake is not clear or does not fit the model.
        """
        self._model = model
        self._gate = gate
        self._at_work: dict[Prompt, tuple[Switch, ...]] = {}
        for prompt in dict.fromkeys(prompts):
            meant = [switch for switch in named if switch.is_meant(prompt)]
            on = [switch for switch in meant if self._is_opened(switch, prompt.text)]
            woken = library.awake(prompt.text, meant) if library else ()
            self._at_work[prompt] = (*on, *woken)
        everything = [switch for at_work in self._at_work.values() for switch in at_work]
        self._switches = tuple(dict.fromkeys([*named, *everything]))
        for switch in named:
            self._tell_if_off(switch)

    def at_work(self, prompt: Prompt) -> tuple[Switch, ...]:
        """Return the LoRAs that are at work for a prompt."""
        return self._at_work[prompt]

    def embed(self, negative: str, clip_skip: int) -> "Texts":
        """Embed every prompt, and the negative one for each, under the gates of its pictures.

        Text that is cut off is warned about, once.

        Raises:
            ConfigError: ``clip_skip`` names a layer that does not exist.
        """
        texts = list(dict.fromkeys([negative, *(prompt.text for prompt in self._at_work)]))
        tokens = dict(zip(texts, token_ids(self._model, texts).ids, strict=True))
        groups: dict[tuple[Switch, ...], list[Prompt]] = {}
        for prompt, at_work in self._at_work.items():
            changing = tuple(switch for switch in at_work if switch.attached.in_text)
            groups.setdefault(changing, []).append(prompt)
        pairs: dict[Prompt, tuple[Conditioning, Conditioning]] = {}
        for changing, prompts in groups.items():
            for switch in self._switches:
                _set(switch, switch in changing)
            # Where nothing changes them all texts are encoded, which is the base model's batch.
            some = [negative, *(prompt.text for prompt in prompts)] if changing else texts
            distinct = list(dict.fromkeys(some))
            found = encode_captions(self._model, distinct, clip_skip, warn=False)
            embedded = dict(zip(distinct, found, strict=True))
            pairs |= {one: (embedded[negative], embedded[one.text]) for one in prompts}
        return Texts(negative, pairs, tokens)

    def set_rows(self, prompts: Sequence[Prompt], texts: "Texts", both: bool) -> None:
        """Set every gate for the coming batch of the U-Net.

        Args:
            prompts: of the batch's pictures.
            texts: of this call.
            both: whether the batch holds each picture twice: all under the negative prompt, then
                all under their own. What is decided for a picture holds for both.
        """
        device = self._model.unet.device
        read = [texts.tokens[prompt.text] for prompt in prompts]
        if both:
            read = [texts.tokens[texts.negative]] * len(prompts) + read
        ids = torch.stack(read)
        for switch in self._switches:
            rows = [switch in self._at_work[prompt] for prompt in prompts]
            tokens = self._places(switch, ids)
            switch.attached.gate.let_through(
                rows * 2 if both else rows, device, None if tokens is None else tokens.to(device)
            )

    def _is_obeyed(self, switch: Switch) -> bool:
        """Tell whether a LoRA's gate counts."""
        if switch.named_by == "library":
            return True
        return self._gate and switch.gated and switch.attached.facts.kind != "none"

    def _is_opened(self, switch: Switch, text: str) -> bool:
        """Tell whether a LoRA is at work for a text: its gate lets it, and its weight is not 0."""
        if switch.mention.weight == 0:
            return False
        if not self._is_obeyed(switch):
            return True
        return has_tag(self._model.tokenizer, switch.attached.facts.tag, text)

    def _places(self, switch: Switch, ids: torch.Tensor) -> torch.Tensor | None:
        """Return the tokens that a LoRA may write to, bool ``[B, L]``, or None for all."""
        facts, tokenizer = switch.attached.facts, self._model.tokenizer
        if facts.kind not in ("token", "token+end") or not self._is_obeyed(switch):
            return None
        places = tag_places(tokenizer, facts.tag, ids)
        if facts.kind == "token":
            return places
        # A text without the tag has an end, too, that training never let the LoRA write to.
        return places | (end_places(tokenizer, ids) & places.any(dim=1, keepdim=True))

    def _tell_if_off(self, switch: Switch) -> None:
        if switch.named_by == "trainer" or switch.mention.weight == 0:
            return
        on = [switch in self._at_work[p] for p in self._at_work if switch.is_meant(p)]
        # One that is named for all pictures may well be meant for some of several prompts.
        if all(on) or (switch.named_by == "call" and any(on)):
            return
        warnings.warn(
            f"LoRA {switch.mention.name} stays off: its tag {switch.attached.facts.tag!r} is not "
            "in the prompt; write it there or use --no-gate (gate=False in Python)",
            LorasmithWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class Texts:
    """The texts of a call as the networks read them."""

    negative: str
    """The negative prompt."""
    pairs: dict[Prompt, tuple[Conditioning, Conditioning]]
    """What the negative prompt and each prompt say to the U-Net."""
    tokens: dict[str, torch.Tensor]
    """Token ids of each text, int64 ``[77]`` on the CPU."""


def _set(switch: Switch, on: bool) -> None:
    if on:
        switch.attached.gate.open()
    else:
        switch.attached.gate.shut_all()
