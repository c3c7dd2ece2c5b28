"""From what a user names to what can be evaluated: runs, LoRA files and their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorasmith.adapters.gating.gate_metadata import GateMetadata, parse_gate
from lorasmith.config.features import load_saved_train_config
from lorasmith.config.train_config import SUFFIX, TrainConfig
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.data.images.decode import WHITE, decode_image
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row
from lorasmith.data.tags import contains_tag
from lorasmith.evaluation.concept import EvalConcept
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import RunPaths
from lorasmith.training.data.split import read_train_rows, split_validation

_SETTINGS = "run.toml"
MAX_REAL_IMAGES = 64
"""Real pictures of a feature that are compared with; of more, evenly spread ones."""


@dataclass(frozen=True)
class EvalTarget:
    """One tag among what a user named."""

    gate: GateMetadata
    """The tag, and what its files say about their gate."""
    files: Sequence[Path]
    """Its LoRAs; the first is the run's result."""
    run: TrainConfig | None
    """The run that made them, where its settings are there."""

    @property
    def tag(self) -> str:
        """What calls it."""
        return self.gate.tag

    def to_concept(self, data: Path | None, class_word: str | None) -> EvalConcept:
        """Return what is measured, with the first of the files.

        Args:
            data: captioned pictures to compare with; None for those that the run kept out, or
                learned from where it kept too few.
            class_word: if not what the file or the run says.

        Raises:
            DataError: there are no pictures, or fewer than two with the tag.
        """
        rows, held_out = self._rows(data)
        if len(rows) < 2:
            raise DataError(
                f"{data or self.files[0]}: {len(rows)} pictures with the tag {self.tag!r}; an evaluation compares with two or more, which --data DIR names"
            )
        stride = -(-len(rows) // MAX_REAL_IMAGES)
        known = self.gate.class_word or (self.run.data.class_word if self.run else "")
        return EvalConcept(
            tag=self.tag,
            class_word=known if class_word is None else class_word,
            file=self.files[0],
            gate=self.gate.kind,
            images=[self._picture(row) for row in rows[::stride]],
            captions=[row.caption for row in rows[::stride]],
            held_out=held_out,
        )

    def _rows(self, data: Path | None) -> tuple[list[Row], bool]:
        """Return pictures with the tag, and whether they were kept out of the training."""
        if data is not None:
            return [row for row in read_rows(data) if contains_tag(row.caption, self.tag)], False
        if self.run is None:
            raise DataError(
                f"{self.files[0]}: which pictures show {self.tag!r}? The run that made it is not there to say; name them with --data DIR"
            )
        rows = read_train_rows(self.run.data)
        _, held_out = split_validation(rows, self.run.data.validation_split)
        return (held_out, True) if len(held_out) > 1 else (rows, False)

    def _picture(self, row: Row) -> Image.Image:
        background = self.run.data.background_rgb if self.run else WHITE
        return decode_image(row.read_bytes(), row.key, background)


def find_targets(targets: Sequence[Path]) -> list[EvalTarget]:
    """Return the tags of runs and LoRA files, in the order in which they are named.

    Files of one tag are put together; a run gives its result, its best and what it saved on the
    way.

    Args:
        targets: folders of runs, or LoRA files.

    Raises:
        WeightsError: a file is missing or no LoRA, or has no tag.
        DataError: a folder is no run's, or the run has left no LoRA.
    """
    found: dict[str, EvalTarget] = {}
    for target in targets:
        for one in _of_run(target) if target.is_dir() else [_of_file(target)]:
            before = found.get(one.tag)
            if before is not None:
                files = list(dict.fromkeys([*before.files, *one.files]))
                one = EvalTarget(before.gate, files, before.run or one.run)
            found[one.tag] = one
    return list(found.values())


def _of_file(file: Path) -> EvalTarget:
    facts = parse_gate(file, load_metadata(file))
    if not facts.tag:
        raise WeightsError(
            f"{file}: it does not say which tag calls it, so that nothing can be measured; name a LoRA that lorasmith trained, or the folder of its run"
        )
    return EvalTarget(facts, [file], _run_beside(file, facts.tag))


def _run_beside(file: Path, tag: str) -> TrainConfig | None:
    """Return the settings of the run in whose folder, or beside whose folder, a file lies."""
    stem = file.name.removesuffix(SUFFIX)
    names = [stem[:end] for end in range(len(stem), 0, -1) if end == len(stem) or stem[end] == "-"]
    for folder in (file.parent, *(file.with_name(name) for name in names)):
        if (folder / _SETTINGS).is_file():
            runs = [run for run, _ in _runs(folder) if run.data.tag == tag]
            if runs:
                return runs[0]
    return None


def _of_run(folder: Path) -> list[EvalTarget]:
    if not (folder / _SETTINGS).is_file():
        raise DataError(
            f"{folder}: not a run's folder (it has no run.toml); a run lies in the folder of its name beside the LoRA, such as loras/inkmono"
        )
    found = []
    for run, paths in _runs(folder):
        files = _files(paths)
        if not files:
            raise DataError(f"{folder}: the run has not left a LoRA of {run.data.tag!r} yet")
        facts = parse_gate(files[0], load_metadata(files[0]))
        found.append(EvalTarget(facts, files, run))
    return found


def _runs(folder: Path) -> list[tuple[TrainConfig, RunPaths]]:
    """Return a run, or those of its features, and where each lies now."""
    run, here = load_saved_train_config(folder / _SETTINGS), str(folder.absolute())
    if isinstance(run, TrainConfig):
        return [(run, RunPaths.from_name(here))]
    moved = run.model_copy(update={"output": run.output.model_copy(update={"name": here})})
    return list(zip(run.train_configs(), FeaturesPaths.from_config(moved).loras, strict=True))


def _files(paths: RunPaths) -> list[Path]:
    """Return a run's LoRAs: its result, its best, and what it saved on the way."""
    own = [paths.lora, paths.best_lora]
    saved = (
        sorted(paths.folder.glob(f"{paths.name}-[0-9]*{SUFFIX}")) if paths.folder.is_dir() else []
    )
    return [file for file in dict.fromkeys([*own, *saved]) if file.is_file()]


def step_of(file: Path) -> int | None:
    """Return after how many steps of training a LoRA file was written, if it says so."""
    return parse_gate(file, load_metadata(file)).step
