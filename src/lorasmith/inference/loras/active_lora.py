"""LoRAs that are in the model during a call, and where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from lorasmith.inference.prompts.lora_request import LoraRequest
from lorasmith.inference.prompts.parse_prompt import Prompt

if TYPE_CHECKING:
    from lorasmith.adapters.injection.inject import AttachedLora


@dataclass(eq=False)
class ActiveLora:
    """A LoRA that is in the model."""

    request: LoraRequest
    """Its name and weight."""
    attached: "AttachedLora"
    """Its adapters."""
    requested_by: Literal["prompt", "call", "library", "trainer"]
    """Who requests it: the prompts that mention it, the call for all of its images, a library for
    prompts with its trigger word, or a trainer that validates its current state."""
    obeys_gate: bool = True

    def is_requested_for(self, prompt: Prompt) -> bool:
        """Tell whether a prompt or the call requests it, whatever its gate says."""
        return self.requested_by in ("call", "trainer") or self.request in prompt.loras


class LoraLibrary(Protocol):
    """LoRAs that activate themselves where their trigger word is in a prompt."""

    def activate_for(
        self, texts: Sequence[str], requested: Sequence[ActiveLora]
    ) -> Sequence[ActiveLora]:
        """Return the LoRAs that the texts of a prompt activate besides those requested for it."""
        ...

    def deactivate_all(self) -> None:
        """Close all gates until the next call."""
        ...
