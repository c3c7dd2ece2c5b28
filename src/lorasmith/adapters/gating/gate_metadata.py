"""What a LoRA file's metadata say about its gate: what activates it, and which run made it.

The keys are ``lorasmith.gate`` (prompt, token, token+end, none), ``lorasmith.tag``,
``lorasmith.class``, ``lorasmith.run`` and ``lorasmith.step``. Files of other programs may have a
``modelspec.trigger_phrase``, which is a hint to people and no gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, get_args

from lorasmith.config.lora import GateKind
from lorasmith.core.errors import WeightsError
from lorasmith.core.text.trigger_word import split_tag, unescape_brackets

TRIGGER_PHRASE = "modelspec.trigger_phrase"
_LONGEST_TAG = 1000
"""Longer tags are refused; a text encoder reads about 300 characters at once."""
_MOST_DIGITS = 18


class HasMetadata(Protocol):
    """A file with a metadata block, such as `lorasmith.adapters.files.lora_file.LoraFile`."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class GateMetadata:
    """What activates a LoRA."""

    kind: GateKind = "none"
    """``prompt``: the trigger word (tag) in an image's prompt. ``token``: as ``prompt``, and layers
    that read text change at the tag's tokens only. ``token+end``: as ``token``, and also at the end
    tokens of a text with the tag. ``none``: the LoRA is always active."""
    tag: str = ""
    """The trigger words; in a file without a gate, the suggested ones."""
    class_word: str = ""
    """What the subject is called without its tag."""
    run_id: str = ""
    """Identity of the run that made the file; all files of a run share it."""
    step: int | None = None
    """Number of optimizer steps that the file is the result of."""

    def to_metadata(self) -> dict[str, str]:
        """Return the entries for a LoRA file's metadata, without unknown ones."""
        entries = {
            "lorasmith.gate": self.kind if self.tag else "none",
            "lorasmith.tag": self.tag,
            "lorasmith.class": self.class_word,
            "lorasmith.run": self.run_id,
            "lorasmith.step": "" if self.step is None else str(self.step),
        }
        return {key: value for key, value in entries.items() if value}


def read_gate(file: HasMetadata) -> GateMetadata:
    """Return what a LoRA file says about its gate; see `parse_gate`."""
    return parse_gate(file.path, file.metadata)


def parse_gate(path: Path, metadata: Mapping[str, str]) -> GateMetadata:
    """Return what a LoRA file's metadata say about its gate.

    Raises:
        WeightsError: the kind of gate does not exist, a gate has no tag, the step is no number, or
            one of them is too long.
    """
    kind = metadata.get("lorasmith.gate", "none")
    text = metadata.get("lorasmith.tag", metadata.get(TRIGGER_PHRASE, "")).strip()
    tag = unescape_brackets(text) if split_tag(text) else ""
    step = metadata.get("lorasmith.step", "")
    if kind not in get_args(GateKind):
        raise WeightsError(
            f"{path}: lorasmith.gate = {kind[:40]!r} in its metadata is unknown; use one of "
            f"{', '.join(get_args(GateKind))}, or a newer lorasmith"
        )
    if kind != "none" and not tag:
        raise WeightsError(
            f"{path}: its metadata have lorasmith.gate = {kind!r} but no lorasmith.tag to open it; "
            "add lorasmith.tag, or set lorasmith.gate = none"
        )
    if len(tag) > _LONGEST_TAG:
        raise WeightsError(
            f"{path}: the tag in its metadata has {len(tag):,} characters; at most "
            f"{_LONGEST_TAG} are read"
        )
    if len(step) > _MOST_DIGITS:
        raise WeightsError(f"{path}: lorasmith.step in its metadata has {len(step):,} digits")
    if step and not step.isdecimal():
        raise WeightsError(f"{path}: lorasmith.step = {step!r} in its metadata is no number")
    return GateMetadata(
        cast("GateKind", kind),
        tag,
        metadata.get("lorasmith.class", ""),
        metadata.get("lorasmith.run", ""),
        int(step) if step else None,
    )
