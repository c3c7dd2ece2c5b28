"""The LoRAs of a pipeline: loaded for all prompts, mentioned in one, in a library, in training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorasmith.inference.loras.active_lora import ActiveLora
from lorasmith.inference.loras.attach import attach_requested_lora
from lorasmith.inference.loras.find import find_lora, resolve_lora
from lorasmith.inference.loras.library import FolderLoraLibrary
from lorasmith.inference.loras.router import LoraRouter
from lorasmith.inference.prompts.lora_request import LoraRequest, check_request
from lorasmith.inference.prompts.parse_prompt import Prompt
from lorasmith.models.model import Model

if TYPE_CHECKING:
    from lorasmith.adapters.injection.inject import AttachedLora


class LoraManager:
    """Attaches LoRAs to a pipeline's model and detaches them again."""

    def __init__(self, model: Model, lora_dir: Path) -> None:
        self._model = model
        self.lora_dir = lora_dir
        self._loaded: list[ActiveLora] = []
        self._external: list[ActiveLora] = []
        self.library = FolderLoraLibrary(model)

    @property
    def loaded(self) -> tuple[LoraRequest, ...]:
        """What `load` attached, in order."""
        return tuple(lora.request for lora in self._loaded)

    def load(
        self, path_or_name: str | Path, request: LoraRequest, gate: bool, strict: bool
    ) -> None:
        """Attach a LoRA for all prompts; see `Pipeline.load_lora`."""
        request = check_request(request, f"LoRA {str(path_or_name)!r}")
        file = resolve_lora(path_or_name, self.lora_dir)
        request = replace(request, name=file.stem)
        attached = attach_requested_lora(self._model, file, request, strict)
        self._loaded.append(ActiveLora(request, attached, "call", gate))

    def unload_all(self) -> None:
        """Detach everything that `load` attached."""
        while self._loaded:
            self._loaded.pop().attached.detach()

    @contextmanager
    def using_adapters(self, attached: "AttachedLora", gate: bool) -> Iterator[None]:
        """Count adapters that somebody else attached among the LoRAs while the block runs."""
        request = LoraRequest(attached.gate_metadata.tag)
        lora = ActiveLora(request, attached, "trainer", gate)
        self._external.append(lora)
        try:
            yield
        finally:
            self._external.remove(lora)

    @contextmanager
    def activated(
        self, prompts: Sequence[Prompt], gate: bool, num_steps: int, strict: bool
    ) -> Iterator[LoraRouter]:
        """Attach what the prompts mention and route all LoRAs while the block runs.

        Afterwards the mentioned LoRAs are detached and all gates are as before.
        """
        mentioned: list[ActiveLora] = []
        requested = [*self._external, *self._loaded]
        try:
            self.library.strict = strict
            self._attach_mentioned(prompts, mentioned, strict)
            requested += mentioned
            yield LoraRouter(self._model, requested, self.library, prompts, gate, num_steps)
        finally:
            for lora in requested:
                lora.attached.gate.open()
            self.library.deactivate_all()
            for lora in reversed(mentioned):
                lora.attached.detach()

    def _attach_mentioned(
        self, prompts: Sequence[Prompt], mentioned: list[ActiveLora], strict: bool
    ) -> None:
        """Attach the LoRAs that prompts mention, once for each weight, and add them to a list.

        All names are looked up before the first file is read.
        """
        requests = list(dict.fromkeys(lora for prompt in prompts for lora in prompt.loras))
        files = {request.name: find_lora(request.name, self.lora_dir) for request in requests}
        for request in requests:  # added one by one, so that a failure leaves none attached
            attached = attach_requested_lora(self._model, files[request.name], request, strict)
            mentioned.append(ActiveLora(request, attached, "prompt"))
