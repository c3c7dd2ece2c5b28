"""A folder of LoRAs of which each wakes on its own tag."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file
from lorasmith.adapters.gating.gate_metadata import GateMetadata, parse_gate
from lorasmith.adapters.gating.trigger_tokens import find_tag_spans, tokenize_tag
from lorasmith.adapters.nn.inject import attach_lora
from lorasmith.adapters.tools.info import detect_lora_family, detect_prediction_type
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.inference.loras.find import list_lora_files
from lorasmith.inference.loras.router import ActiveLora
from lorasmith.inference.prompts.parser import LoraRequest
from lorasmith.models.family import detect_family
from lorasmith.models.load import Model

_Tag = tuple[int, ...]
"""A tag as tokens: tags that the tokenizer reads alike are one."""


@dataclass(frozen=True)
class LibraryEntry:
    """A file of a library; no weight of it has been read."""

    path: Path
    """The file."""
    facts: GateMetadata
    """What wakes it; never of the kind ``none``."""
    fits: bool
    """False where its metadata say that it is for another kind of model."""


class FolderLoraLibrary:
    """LoRAs that are put into a model when their tag is first in a prompt, and stay there."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._entries: dict[_Tag, list[LibraryEntry]] = {}
        self._switches: dict[Path, ActiveLora] = {}

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that wake something, in alphabetical order."""
        return self._written(self._entries)

    def find_tags(self, text: str) -> tuple[str, ...]:
        """Return those that a text has, likewise; see `activate_for`."""
        return self._written(self._tags_in(text))

    def add(self, folder: Path) -> None:
        """Take in the LoRA files that lie directly in a folder; only their metadata are read.

        Those without a tag are left out, with one warning.

        Raises:
            WeightsError: no such folder, no LoRA file in it, none with a tag, or a damaged one.
        """
        found = [self._entry(path) for path in list_lora_files(folder)]
        known = [entry for entry in found if entry.facts.kind != "none"]
        mute = [entry.path.name for entry in found if entry.facts.kind == "none"]
        if not known:
            raise WeightsError(
                f"library {folder}: none of its {len(mute)} LoRA files says which tag wakes it, "
                f"first {mute[0]}; name the one you mean with --lora"
            )
        if mute:
            warnings.warn(
                f"library {folder}: {len(mute)} of {len(found)} LoRA files have no tag that could "
                f"wake them and are left out, first {mute[0]}; name them with --lora",
                LorasmithWarning,
                stacklevel=2,
            )
        for entry in known:
            self._entries.setdefault(self._tag(entry.facts), []).append(entry)

    def activate_for(self, text: str, named: Sequence[ActiveLora] = ()) -> list[ActiveLora]:
        """Return the LoRAs that wake for a prompt; those that are not in the model yet are put in.

        A tag that only occurs within a longer tag of the library does not count, and neither does
        one that a LoRA named by the user has: that one takes its place.

        Raises:
            WeightsError: two files claim one tag, or a file does not fit the model.
        """
        taken = {
            self._tag(one.attached.gate_metadata) for one in named if one.attached.gate_metadata.tag
        }
        return [self._switch(tag) for tag in self._tags_in(text) if tag not in taken]

    def deactivate_all(self) -> None:
        """Have none of them at work, until a call asks for it."""
        for switch in self._switches.values():
            switch.attached.gate.close()

    def clear(self) -> None:
        """Take all of them out of the model and forget them."""
        for switch in self._switches.values():
            switch.attached.detach()
        self._switches.clear()
        self._entries.clear()

    def _entry(self, path: Path) -> LibraryEntry:
        metadata = load_metadata(path)
        facts = parse_gate(path, metadata)
        if facts.kind == "none" and facts.tag:
            facts = replace(facts, kind="prompt")  # a phrase that people are told to write
        told = LoraFile(path, {}, metadata)
        family = detect_lora_family(told)[0] or detect_family(self._model)
        predicted = self._model.scheduler_config.get("prediction_type", "epsilon")
        meant = detect_prediction_type(told) or predicted
        return LibraryEntry(
            path, facts, family == detect_family(self._model) and meant == predicted
        )

    def _tag(self, facts: GateMetadata) -> _Tag:
        return tuple(tokenize_tag(self._model.main_tokenizer, facts.tag))

    def _written(self, tags: Iterable[_Tag]) -> tuple[str, ...]:
        return tuple(sorted(self._entries[tag][0].facts.tag for tag in tags))

    def _tags_in(self, text: str) -> list[_Tag]:
        """Return the tags that occur in a text other than within a longer one."""
        tokenizer = self._model.main_tokenizer
        spans = {
            tag: find_tag_spans(tokenizer, entries[0].facts.tag, text)
            for tag, entries in self._entries.items()
        }
        everywhere = [span for some in spans.values() for span in some]
        return [
            tag
            for tag, some in spans.items()
            if any(not _lies_within(span, everywhere) for span in some)
        ]

    def _switch(self, tag: _Tag) -> ActiveLora:
        entry = self._chosen(tag)
        switch = self._switches.get(entry.path)
        if switch is None:
            try:
                attached = attach_lora(self._model, load_lora_file(entry.path))
            except WeightsError as error:
                raise WeightsError(
                    f"{error} (it is in the library, and its tag {entry.facts.tag!r} is in the "
                    "prompt: leave the tag out or take the file away)"
                ) from error
            attached.gate_metadata = entry.facts
            attached.gate.close()
            switch = ActiveLora(LoraRequest(entry.path.stem), attached, "library")
            self._switches[entry.path] = switch
        return switch

    def _chosen(self, tag: _Tag) -> LibraryEntry:
        """Return the file that a tag stands for: the latest of a run, among those that fit."""
        entries = self._entries[tag]
        fitting = [entry for entry in entries if entry.fits]
        latest = _latest_of_runs(fitting)
        if len(latest) > 1:
            names = " and ".join(str(entry.path) for entry in latest)
            raise WeightsError(
                f"library: {names} both claim the tag {latest[0].facts.tag!r}; take one away, or "
                "name the one you mean with --lora"
            )
        if len(fitting) > 1:
            warnings.warn(
                f"library: {len(fitting)} files of one run have the tag "
                f"{latest[0].facts.tag!r}; the latest is used, {latest[0].path.name}",
                LorasmithWarning,
                stacklevel=2,
            )
            # Said once, and settled.
            self._entries[tag] = [one for one in entries if one not in fitting or one in latest]
        return (latest or entries)[0]


def _lies_within(span: range, others: Collection[range]) -> bool:
    return any(
        other.start <= span.start and span.stop <= other.stop and len(span) < len(other)
        for other in others
    )


def _latest_of_runs(entries: Sequence[LibraryEntry]) -> list[LibraryEntry]:
    """Return the file of the latest step of each run; files of unknown runs count by themselves."""
    latest: dict[str, LibraryEntry] = {}
    for entry in sorted(entries, key=_age):
        latest[entry.facts.run_id or str(entry.path)] = entry
    return list(latest.values())


def _age(entry: LibraryEntry) -> tuple[int, str]:
    step = entry.facts.step
    return -1 if step is None else step, str(entry.path)
