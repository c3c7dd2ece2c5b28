"""Which LoRAs are active for which image: every image of a batch under the gates of its prompt.

A LoRA may be active for some of the denoising steps only. Consecutive steps with the same LoRAs are
a phase, which is named by its first step; the first step of all is 1.

A gate never changes the shape of a batch. Images without an active LoRA are therefore computed as
in a batch of the base model, bit for bit.
"""

import warnings
from collections.abc import Iterable, Sequence

import torch

from lorasmith.adapters.gating.token_mask import selects_tokens, token_mask
from lorasmith.adapters.gating.trigger_tokens import has_tag
from lorasmith.core.errors import InactiveLoraWarning, LorasmithWarning
from lorasmith.core.text.trigger_word import escape_brackets
from lorasmith.inference.loras.active_lora import ActiveLora, LoraLibrary
from lorasmith.inference.prompts.lora_request import LoraRequest
from lorasmith.inference.prompts.parse_prompt import Prompt
from lorasmith.models.model import Model
from lorasmith.models.text.prompt_spans import WeightedPrompt, section_texts


class LoraRouter:
    """Decides for one call which LoRAs are active for which prompt, and sets their gates."""

    def __init__(
        self,
        model: Model,
        requested: Sequence[ActiveLora],
        library: LoraLibrary | None,
        prompts: Iterable[Prompt],
        gate: bool = True,
        num_steps: int = 1,
    ) -> None:
        """Decide which LoRAs are active for which prompts.

        One warning is given for each requested LoRA that stays off.

        Args:
            model: the model that they are in.
            requested: by prompts, the call or a trainer.
            library: may activate more.
            prompts: all prompts of the call.
            gate: False makes the requested ones active whatever their gates say.
            num_steps: denoising steps of the call.

        Raises:
            WeightsError: a LoRA of the library is ambiguous or does not fit the model.
        """
        self._model = model
        self._gate = gate
        self._active: dict[Prompt, tuple[ActiveLora, ...]] = {}
        for prompt in dict.fromkeys(prompts):
            candidates = [lora for lora in requested if lora.is_requested_for(prompt)]
            opened = [lora for lora in candidates if self._is_open_for(lora, prompt)]
            texts = section_texts(prompt.weighted)
            activated = library.activate_for(texts, candidates) if library else ()
            self._active[prompt] = (*opened, *activated)
        active = list(dict.fromkeys(lora for loras in self._active.values() for lora in loras))
        self._loras = tuple(dict.fromkeys([*requested, *active]))
        self.phase_starts = _find_phase_starts((lora.request for lora in active), num_steps)
        """The first step of each phase, in order."""
        for lora in requested:
            self._warn_if_off(lora)
        for lora in active:
            _warn_if_late(lora.request, num_steps)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The call's prompts, each once."""
        return tuple(self._active)

    def active_loras(self, prompt: Prompt, phase: int | None = None) -> tuple[ActiveLora, ...]:
        """Return the LoRAs that are active for a prompt in a phase, or in any for None."""
        active = self._active[prompt]
        return tuple(lora for lora in active if phase is None or lora.request.is_active_at(phase))

    def open_only(self, loras: Sequence[ActiveLora]) -> None:
        """Open the gates of these LoRAs for every row, and close all others."""
        for lora in self._loras:
            if lora in loras:
                lora.attached.gate.open()
            else:
                lora.attached.gate.close()

    def set_gates(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[WeightedPrompt],
        ids: torch.Tensor,
        phase: int = 1,
    ) -> None:
        """Set every gate for the coming batches of the U-Net.

        Args:
            prompts: of the batch's images.
            texts: of its rows. Under guidance the batch holds each image twice: all under the
                negative prompt, then all under their own. Both rows have the same LoRAs.
            ids: their token ids, int64 ``[len(texts), L]`` on the CPU.
            phase: of the batches.
        """
        device = self._model.unet.device
        for lora in self._loras:
            rows = [lora in self.active_loras(prompt, phase) for prompt in prompts]
            mask = self._token_mask(lora, texts, ids)
            lora.attached.gate.set_rows(
                rows * (len(texts) // len(prompts)),
                device,
                None if mask is None else mask.to(device),
            )

    def _obeys_gate(self, lora: ActiveLora) -> bool:
        if lora.requested_by == "library":
            return True
        return self._gate and lora.obeys_gate and lora.attached.gate_metadata.kind != "none"

    def _is_open_for(self, lora: ActiveLora, prompt: Prompt) -> bool:
        if lora.request.is_zero:
            return False
        if not self._obeys_gate(lora):
            return True
        return has_tag(prompt.weighted, lora.attached.gate_metadata.tag)

    def _token_mask(
        self, lora: ActiveLora, texts: Sequence[WeightedPrompt], ids: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the tokens that a LoRA may change, bool ``[len(texts), L]``, or None for all."""
        gate = lora.attached.gate_metadata
        if not selects_tokens(gate) or not self._obeys_gate(lora):
            return None
        return token_mask(self._model.main_tokenizer, gate, texts, ids)

    def _warn_if_off(self, lora: ActiveLora) -> None:
        if lora.requested_by == "trainer" or lora.request.is_zero:
            return
        is_on = [
            lora in active
            for prompt, active in self._active.items()
            if lora.is_requested_for(prompt)
        ]
        # A LoRA of the call may well be meant for some of several prompts.
        if all(is_on) or (lora.requested_by == "call" and any(is_on)):
            return
        tag = lora.attached.gate_metadata.tag
        warnings.warn(
            f"LoRA {lora.request.name} stays off: its tag {tag!r} is not in the prompt; write "
            f"{_how_to_write(tag)} there or use --no-gate (gate=False in Python)",
            InactiveLoraWarning,
            stacklevel=2,
        )


def _how_to_write(tag: str) -> str:
    """Return a tag as a prompt has to say it, where that is not as it is: brackets are escaped."""
    escaped = escape_brackets(tag)
    return "it" if escaped == tag else escaped


def _find_phase_starts(requests: Iterable[LoraRequest], num_steps: int) -> tuple[int, ...]:
    starts = {1}
    for request in requests:
        starts |= {request.start, num_steps + 1 if request.stop is None else request.stop + 1}
    return tuple(sorted(start for start in starts if start <= num_steps))


def _warn_if_late(request: LoraRequest, num_steps: int) -> None:
    if request.start > num_steps:
        warnings.warn(
            f"LoRA {request.name} stays off: it is to start at step {request.start} and there are "
            f"{num_steps}; take more steps or an earlier start",
            LorasmithWarning,
            stacklevel=3,
        )
