"""What a LoRA file says about its gate: what switches it on, and which run it is of.

The keys are ``lorasmith.gate`` (prompt, token, token+end, none), ``lorasmith.tag``,
``lorasmith.class``, ``lorasmith.run`` and ``lorasmith.step``. Other programs' files may have a
``modelspec.trigger_phrase``, which is a hint to people, not a gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from lorasmith.adapters.files.lora_file import LoraFile
from lorasmith.config.lora import GateKind
from lorasmith.core.errors import WeightsError

TRIGGER_PHRASE = "modelspec.trigger_phrase"


@dataclass(frozen=True)
class GateMetadata:
    """What switches a LoRA on."""

    kind: GateKind = "none"
    """``prompt``: the tag in an image's prompt. ``token``: likewise, and layers that read text
    change at the tag's tokens only; ``token+end`` also from the end of a text with the tag on.
    ``none``: it is always on."""
    tag: str = ""
    """The words that switch it on; of a file without a gate, the words to call it by."""
    class_word: str = ""
    """What the tagged thing is without its tag."""
    run_id: str = ""
    """Identity of the run that made it; files of one run share it."""
    step: int | None = None
    """Optimizer steps that it is the result of."""

    def to_metadata(self) -> dict[str, str]:
        """Return the entries of a LoRA file's metadata; what is not known is left out."""
        told = {
            "lorasmith.gate": self.kind if self.tag else "none",
            "lorasmith.tag": self.tag,
            "lorasmith.class": self.class_word,
            "lorasmith.run": self.run_id,
            "lorasmith.step": "" if self.step is None else str(self.step),
        }
        return {key: value for key, value in told.items() if value}


def read_gate(file: LoraFile) -> GateMetadata:
    """Return what a LoRA file says about its gate.

    Raises:
        WeightsError: see `gate_of_metadata`.
    """
    return parse_gate(file.path, file.metadata)


def parse_gate(path: Path, metadata: Mapping[str, str]) -> GateMetadata:
    """Return what a LoRA file's metadata block says about its gate.

    Raises:
        WeightsError: it names a kind of gate that does not exist, a gate and no tag, or a step that
            is no number.
    """
    kind = metadata.get("lorasmith.gate", "none")
    tag = metadata.get("lorasmith.tag", metadata.get(TRIGGER_PHRASE, "")).strip()
    step = metadata.get("lorasmith.step", "")
    if kind not in get_args(GateKind):
        raise WeightsError(
            f"{path}: its metadata name the gate {kind!r}, which does not exist; use one of "
            f"{', '.join(get_args(GateKind))}, or a newer lorasmith"
        )
    if kind != "none" and not tag:
        raise WeightsError(
            f"{path}: its metadata name the gate {kind!r} and no tag that would open it; the file "
            "was edited: write lorasmith.tag, or lorasmith.gate = none"
        )
    if step and not step.isdecimal():
        raise WeightsError(f"{path}: its metadata name the step {step!r}, which is no number")
    return GateMetadata(
        cast("GateKind", kind),
        tag,
        metadata.get("lorasmith.class", ""),
        metadata.get("lorasmith.run", ""),
        int(step) if step else None,
    )
