"""A folder of LoRAs that activate themselves: each where its trigger word (tag) is in a prompt."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith.adapters.files.lora_family import detect_lora_family, detect_prediction_type
from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file
from lorasmith.adapters.gating.gate_metadata import GateMetadata, parse_gate
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.core.errors import LorasmithWarning, WeightsError
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.core.text.trigger_word import find_tag, split_tag
from lorasmith.inference.loras.active_lora import ActiveLora
from lorasmith.inference.loras.find import list_lora_files
from lorasmith.inference.prompts.lora_request import LoraRequest
from lorasmith.models.families.family import detect_family
from lorasmith.models.model import Model

_TagWords = tuple[str, ...]
"""The words and signs of a tag: tags with the same are the same tag."""


@dataclass(frozen=True)
class LibraryEntry:
    """A file of a library; its weights have not been read."""

    path: Path
    gate: GateMetadata
    """Activates it; never of the kind ``none``."""
    fits_model: bool
    """False where its metadata say that it is for another kind of model."""


class FolderLoraLibrary:
    """LoRAs that are attached when their tag first occurs in a prompt, and stay attached."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._entries: dict[_TagWords, list[LibraryEntry]] = {}
        self._attached: dict[Path, ActiveLora] = {}
        self.strict = True
        """Whether files that fit only in part, or are not understood completely, are refused."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its LoRAs, in alphabetical order."""
        return self._tag_texts(self._entries)

    def find_tags(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return those tags that a text has, in alphabetical order; see `activate_for`."""
        return self._tag_texts(self._find_tag_words(texts))

    def add(self, folder: Path) -> None:
        """Add the LoRA files that lie directly in a folder; only their metadata are read.

        Those without a tag are left out, with one warning, and damaged ones with one each.

        Raises:
            WeightsError: no such folder, no LoRA file in it, none with a tag, or all damaged.
        """
        entries = self._read_entries(folder)
        with_tag = [entry for entry in entries if entry.gate.kind != "none"]
        without_tag = [entry.path.name for entry in entries if entry.gate.kind == "none"]
        if not with_tag:
            raise WeightsError(
                f"library {folder}: none of its {len(without_tag)} LoRA files says which tag "
                f"activates it, first {without_tag[0]}; name the one you mean with --lora"
            )
        if without_tag:
            warnings.warn(
                f"library {folder}: {len(without_tag)} of {len(entries)} LoRA files have no tag "
                f"that could activate them and are left out, first {without_tag[0]}; name them "
                "with --lora",
                LorasmithWarning,
                stacklevel=2,
            )
        for entry in with_tag:
            self._entries.setdefault(split_tag(entry.gate.tag), []).append(entry)

    def activate_for(
        self, texts: Sequence[str], requested: Sequence[ActiveLora] = ()
    ) -> list[ActiveLora]:
        """Return the LoRAs that a prompt activates; those that are not attached yet are attached.

        The texts are those of the prompt's sections. A tag that only occurs within a longer tag of
        the library does not count, and neither does a tag of a requested LoRA, which replaces the
        library's.

        Raises:
            WeightsError: two files claim one tag, or a file does not fit the model.
        """
        if not self._entries:
            return []
        gates = [lora.attached.gate_metadata for lora in requested]
        requested_tags = {split_tag(gate.tag) for gate in gates if gate.tag}
        tags = [tag for tag in self._find_tag_words(texts) if tag not in requested_tags]
        return [self._attach(tag) for tag in tags]

    def deactivate_all(self) -> None:
        """Close all gates until the next call."""
        for lora in self._attached.values():
            lora.attached.gate.close()

    def clear(self) -> None:
        """Detach and forget all LoRAs."""
        for lora in self._attached.values():
            lora.attached.detach()
        self._attached.clear()
        self._entries.clear()

    def _read_entries(self, folder: Path) -> list[LibraryEntry]:
        """Return the files that can be read; a bad one does not stop the others."""
        paths = list_lora_files(folder)
        entries, problems = [], []
        for path in paths:
            try:
                entries.append(self._read_entry(path))
            except WeightsError as error:
                problems.append(str(error))
        if not entries:
            raise WeightsError(
                f"library {folder}: none of its {len(paths)} LoRA files can be read, first "
                f"{problems[0]}"
            )
        for problem in problems:
            warnings.warn(f"library {folder}: left out {problem}", LorasmithWarning, stacklevel=3)
        return entries

    def _read_entry(self, path: Path) -> LibraryEntry:
        metadata = load_metadata(path)
        gate = parse_gate(path, metadata)
        if gate.kind == "none" and gate.tag:
            gate = replace(gate, kind="prompt")  # a trigger phrase that people are told to write
        header = LoraFile(path, {}, metadata)
        model_family = detect_family(self._model).name
        model_prediction = self._model.scheduler_config.get("prediction_type", "epsilon")
        family = detect_lora_family(header)[0] or model_family
        prediction = detect_prediction_type(header) or model_prediction
        fits_model = family == model_family and prediction == model_prediction
        return LibraryEntry(path, gate, fits_model)

    def _tag_texts(self, tags: Iterable[_TagWords]) -> tuple[str, ...]:
        return tuple(sorted(self._entries[tag][0].gate.tag for tag in tags))

    def _find_tag_words(self, texts: Sequence[str]) -> list[_TagWords]:
        """Return the tags that occur in a text other than within a longer tag."""
        tags = {tag: entries[0].gate.tag for tag, entries in self._entries.items()}
        active: dict[_TagWords, None] = {}
        for text in texts:
            places_by_tag = {tag: find_tag(text, name) for tag, name in tags.items()}
            all_places = [place for places in places_by_tag.values() for place in places]
            for tag, places in places_by_tag.items():
                if any(not _is_within_longer(place, all_places) for place in places):
                    active[tag] = None
        return [tag for tag in tags if tag in active]

    def _attach(self, tag: _TagWords) -> ActiveLora:
        entry = self._choose_entry(tag)
        lora = self._attached.get(entry.path)
        if lora is None:
            try:
                file = load_lora_file(entry.path, ignore_unknown=not self.strict)
                attached = attach_lora(self._model, file, strict=self.strict)
            except WeightsError as error:
                raise WeightsError(
                    f"{error} (it is in the library, and its tag {entry.gate.tag!r} is in the "
                    "prompt: leave the tag out or remove the file)"
                ) from error
            attached.gate_metadata = entry.gate
            attached.gate.close()
            lora = ActiveLora(LoraRequest(entry.path.stem), attached, "library")
            self._attached[entry.path] = lora
        return lora

    def _choose_entry(self, tag: _TagWords) -> LibraryEntry:
        """Return the file that a tag stands for: the latest of a run, among those that fit."""
        entries = self._entries[tag]
        fitting = [entry for entry in entries if entry.fits_model]
        latest = _latest_of_each_run(fitting)
        if len(latest) > 1:
            names = ", ".join(str(entry.path) for entry in latest)
            raise WeightsError(
                f"library: {len(latest)} files have the tag {latest[0].gate.tag!r}: {names}; name "
                "the one you mean with --lora, or keep only that one in the folder"
            )
        if len(fitting) > 1:
            warnings.warn(
                f"library: {len(fitting)} files of one run have the tag "
                f"{latest[0].gate.tag!r}; the latest is used, {latest[0].path.name}",
                LorasmithWarning,
                stacklevel=2,
            )
            # Drop the older ones, so that the warning comes once.
            self._entries[tag] = [
                entry for entry in entries if entry not in fitting or entry in latest
            ]
        return (latest or entries)[0]


def _is_within_longer(place: range, places: Collection[range]) -> bool:
    return any(
        other.start <= place.start and place.stop <= other.stop and len(place) < len(other)
        for other in places
    )


def _latest_of_each_run(entries: Sequence[LibraryEntry]) -> list[LibraryEntry]:
    """Return each run's file of the latest step; a file of an unknown run counts as its own run."""
    latest: dict[str, LibraryEntry] = {}
    for entry in sorted(entries, key=_step_order):
        latest[entry.gate.run_id or str(entry.path)] = entry
    return list(latest.values())


def _step_order(entry: LibraryEntry) -> tuple[int, str]:
    step = entry.gate.step
    return -1 if step is None else step, str(entry.path)
