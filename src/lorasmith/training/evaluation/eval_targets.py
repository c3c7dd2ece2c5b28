"""From what a user names to what can be evaluated: runs, LoRA files and their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorasmith.adapters.gating.gate_metadata import GateMetadata, parse_gate
from lorasmith.config.features import load_saved_train_config
from lorasmith.config.train_config import SUFFIX, TrainConfig
from lorasmith.core.errors import DataError, WeightsError
from lorasmith.core.safetensors_io import load_metadata
from lorasmith.core.text.trigger_word import contains_tag
from lorasmith.data.images.decode import WHITE, decode_image
from lorasmith.data.reading.options import ReadOptions
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row
from lorasmith.evaluation.concept import EvalConcept
from lorasmith.runs.features_paths import FeaturesPaths
from lorasmith.runs.paths import LORA_FOLDER, RunPaths
from lorasmith.runs.run_folder import not_a_run
from lorasmith.training.data.split import read_train_rows, split_validation

_SETTINGS = "run.toml"
MAX_REAL_IMAGES = 64
"""Real images of a concept that are compared with; of more, evenly spaced ones."""
MAX_REAL_SIDE = 2048
"""Larger ones are scaled down, as all are in memory at once; encoders look at 64 to 518 pixels."""


@dataclass(frozen=True)
class EvalTarget:
    """A trigger word with its LoRA files and its run."""

    gate: GateMetadata
    """The trigger word, and the gate that its files have."""
    files: Sequence[Path]
    """Its LoRAs; the first is the run's result."""
    config: TrainConfig | None
    """The settings of the run that trained them; None if they are not found."""

    @property
    def tag(self) -> str:
        """The trigger word."""
        return self.gate.tag

    def files_with_steps(self) -> list[tuple[Path, int | None]]:
        """Return the files, each with the training step at which it was saved, if it says so."""
        return [(file, parse_gate(file, load_metadata(file)).step) for file in self.files]

    def to_concept(self, data: Path | None, class_word: str | None) -> EvalConcept:
        """Return what is evaluated, with the first of the files.

        Args:
            data: captioned images to compare with; None for the run's validation images, or its
                training images if those are fewer than two.
            class_word: None is that of the file or the run.

        Raises:
            DataError: there are no images, or fewer than two with the trigger word.
        """
        rows, held_out = self._read_rows(data)
        if len(rows) < 2:
            raise DataError(
                f"{data or self.files[0]}: {len(rows)} pictures with the tag {self.tag!r}; an "
                "evaluation compares with two or more, which --data DIR names"
            )
        rows = rows[:: -(-len(rows) // MAX_REAL_IMAGES)]
        if class_word is None:
            class_word = self.gate.class_word
            class_word = class_word or (self.config.data.class_word if self.config else "")
        return EvalConcept(
            tag=self.tag,
            class_word=class_word,
            file=self.files[0],
            gate=self.gate.kind,
            images=[self._decode(row) for row in rows],
            captions=[row.caption for row in rows],
            held_out=held_out,
        )

    def _read_rows(self, data: Path | None) -> tuple[list[Row], bool]:
        """Return images with the trigger word, and whether they were held out of the training."""
        if data is not None:
            follow_links = self.config is not None and self.config.data.follow_links
            rows = read_rows(data, ReadOptions(follow_links=follow_links))
            return [row for row in rows if contains_tag(row.caption, self.tag)], False
        if self.config is None:
            raise DataError(
                f"{self.files[0]}: it is not known which pictures show {self.tag!r}, as its run's "
                "folder is not beside it; name them with --data DIR"
            )
        rows = read_train_rows(self.config.data)
        _, validation_rows = split_validation(rows, self.config.data.validation_split)
        return (validation_rows, True) if len(validation_rows) > 1 else (rows, False)

    def _decode(self, row: Row) -> Image.Image:
        background = self.config.data.background_rgb if self.config else WHITE
        image = decode_image(row.read_bytes(), row.key, background)
        image.thumbnail((MAX_REAL_SIDE, MAX_REAL_SIDE), Image.Resampling.LANCZOS)
        return image


def resolve_target(target: str | Path) -> Path:
    """Return the path of a run's folder or a LoRA file.

    A name without a folder is also searched for in ``loras/``, and ``.safetensors`` may be left
    out. If there is nothing of the kind, the path is returned unchanged.
    """
    path = Path(target).expanduser()
    bases = [path] if path.is_absolute() or len(path.parts) > 1 else [path, LORA_FOLDER / path]
    for base in bases:
        for candidate in (base, base.parent / f"{base.name}{SUFFIX}"):
            if candidate.is_file() or (candidate / _SETTINGS).is_file():
                return candidate
    return path


def find_targets(paths: Sequence[Path]) -> list[EvalTarget]:
    """Return the trigger words of runs and LoRA files, in the order in which they are named.

    Files of the same trigger word are put together. A run gives its result, its best LoRA and those
    saved on the way.

    Args:
        paths: folders of runs, or LoRA files.

    Raises:
        WeightsError: a file is missing, is not a LoRA, or has no trigger word.
        DataError: a folder is not a run's, or the run has no LoRA yet.
    """
    targets: dict[str, EvalTarget] = {}
    for path in paths:
        for target in _targets_of_run(path) if path.is_dir() else [_target_of_file(path)]:
            known = targets.get(target.tag)
            if known is not None:
                files = list(dict.fromkeys([*known.files, *target.files]))
                target = EvalTarget(known.gate, files, known.config or target.config)
            targets[target.tag] = target
    return list(targets.values())


def _target_of_file(file: Path) -> EvalTarget:
    gate = parse_gate(file, load_metadata(file))
    if not gate.tag:
        raise WeightsError(
            f"{file}: it has no trigger word (tag) in its metadata, so nothing can be measured; "
            "name a LoRA that lorasmith trained, or the folder of its run"
        )
    return EvalTarget(gate, [file], _find_config(file, gate.tag))


def _find_config(file: Path, tag: str) -> TrainConfig | None:
    """Return the settings of the run whose folder a file is in or beside."""
    stem = file.name.removesuffix(SUFFIX)
    ends = [i for i in range(len(stem), 0, -1) if i == len(stem) or stem[i] == "-"]
    for folder in (file.parent, *(file.with_name(stem[:end]) for end in ends)):
        if (folder / _SETTINGS).is_file():
            configs = [config for config, _ in _read_runs(folder) if config.data.tag == tag]
            if configs:
                return configs[0]
    return None


def _targets_of_run(folder: Path) -> list[EvalTarget]:
    if not (folder / _SETTINGS).is_file():
        raise not_a_run(folder)
    targets = []
    for config, paths in _read_runs(folder):
        files = _lora_files(paths)
        if not files:
            raise DataError(f"{folder}: the run has no LoRA of {config.data.tag!r} yet")
        gate = parse_gate(files[0], load_metadata(files[0]))
        targets.append(EvalTarget(gate, files, config))
    return targets


def _read_runs(folder: Path) -> list[tuple[TrainConfig, RunPaths]]:
    """Return the settings and paths of a run, or of each of its features."""
    config, name = load_saved_train_config(folder / _SETTINGS), str(folder.absolute())
    if isinstance(config, TrainConfig):
        return [(config, RunPaths.from_name(name))]
    paths = FeaturesPaths.from_config(config, name)
    return list(zip(config.train_configs(), paths.loras, strict=True))


def _lora_files(paths: RunPaths) -> list[Path]:
    """Return a run's LoRAs: its result, its best, and those saved on the way."""
    files = [paths.lora, paths.best_lora]
    if paths.folder.is_dir():
        files += sorted(paths.folder.glob(f"{paths.name}-[0-9]*{SUFFIX}"))
    return [file for file in dict.fromkeys(files) if file.is_file()]
