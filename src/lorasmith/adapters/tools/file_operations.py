"""Operations on LoRA files, from path to path: the commands of ``lorasmith lora``.

Everything is checked and computed before the first byte is written. No file is overwritten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorasmith.adapters.files.derived_metadata import (
    common_prediction_type,
    merge_metadata,
    update_metadata,
)
from lorasmith.adapters.files.diffusers_format import save_diffusers_file
from lorasmith.adapters.files.lora_family import detect_lora_family
from lorasmith.adapters.files.lora_file import (
    LoraFile,
    load_lora_file,
    read_lora_file,
    save_lora_file,
)
from lorasmith.adapters.files.metadata import LoraMetadata, PartSummary, build_metadata
from lorasmith.adapters.kinds.base import AdapterLayer
from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.block_weights import parse_block_weights
from lorasmith.adapters.tools.canonical_layers import canonical_layers, merge_embeddings
from lorasmith.adapters.tools.diff import LoraDiff, compare_loras
from lorasmith.adapters.tools.extract import ExtractedLora, extract_difference
from lorasmith.adapters.tools.fuse_into_model import fuse_into_model
from lorasmith.adapters.tools.info import LoraInfo, summarize_lora
from lorasmith.adapters.tools.lora_arithmetic import RankLimit, RetainedEnergy
from lorasmith.adapters.tools.merge import (
    MergeInput,
    WeightLookup,
    add_loras,
    common_family,
    is_cancelled,
    resize_layers,
    truncate_layers,
    weight_lookup,
)
from lorasmith.core.device import compute_dtype
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.families.family import detect_family, get_family

if TYPE_CHECKING:
    from lorasmith.models.model import Model

KeyFormat = Literal["kohya", "diffusers"]
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class WeightedLora:
    """A LoRA file with its weight and its block weights."""

    path: str | Path
    """The file."""
    weight: float = 1.0
    """Its multiplier."""
    blocks: str = ""
    """Block weights: a preset or numbers (see `lorasmith.adapters.naming.block_weights`)."""

    def load(self, ignore_unknown: bool = False) -> MergeInput:
        """Read the file; see `load_lora_file`."""
        blocks = parse_block_weights(self.blocks) if self.blocks else None
        file = load_lora_file(Path(self.path).expanduser(), ignore_unknown)
        return MergeInput(file, self.weight, blocks)


@dataclass(frozen=True)
class WriteResult:
    """The result of writing a LoRA file."""

    path: Path
    """The file."""
    layers: int
    """Number of its layers."""
    ranks: tuple[int, ...]
    """The ranks that occur, rising."""
    energy: RetainedEnergy
    """How much of the energy remains if ranks were truncated."""


def lora_info(path: str | Path) -> LoraInfo:
    """Return a summary of a LoRA file.

    Raises:
        WeightsError: the file is missing, damaged, or no LoRA.
    """
    return summarize_lora(read_lora_file(Path(path).expanduser()))


def diff_loras(first: str | Path, second: str | Path, ignore_unknown: bool = False) -> LoraDiff:
    """Compare two LoRA files, whatever their key format, rank and kind.

    Args:
        first: a file.
        second: another.
        ignore_unknown: leave out what is not understood, with a warning.

    Raises:
        WeightsError: a file is damaged or has unknown tensors, or they are for different families.
    """
    left, right = (
        load_lora_file(Path(path).expanduser(), ignore_unknown) for path in (first, second)
    )
    return compare_loras(left, right, ignore_unknown)


def convert_lora(
    source: str | Path,
    out: str | Path,
    key_format: KeyFormat = "kohya",
    family: str | None = None,
    fold_alpha: bool = False,
    ignore_unknown: bool = False,
) -> WriteResult:
    """Write a LoRA file in another key format; its values do not change.

    Embeddings that are bundled with it stay in it.

    Args:
        source: the file, in any key format.
        out: the new file, which must not exist.
        key_format: ``kohya`` or ``diffusers``.
        family: the family that it is for, if the file does not show it.
        fold_alpha: for ``diffusers``, multiply the factors by alpha / rank, for programs that do
            not read alphas from the metadata.
        ignore_unknown: leave out what is not understood, with a warning.

    Raises:
        WeightsError: the file is damaged, has unknown tensors or layers, is for another family
            than ``family``, or of a kind that the key format has no keys for.
        OutputError: the file exists, or it cannot be written.
    """
    file = load_lora_file(Path(source).expanduser(), ignore_unknown)
    target, family = _new_path(out), _resolve_family(file, family)
    layers = canonical_layers(file, family, ignore_unknown)
    metadata = update_metadata(file, layers, family, target.stem)
    if key_format == "kohya":
        save_lora_file(target, layers, metadata, dtype=None, embeddings=file.embeddings)
    else:
        save_diffusers_file(
            target, layers, metadata, fold_alpha=fold_alpha, embeddings=file.embeddings
        )
    return _write_result(target, layers)


def _load_files(
    files: Sequence[WeightedLora | str | Path], ignore_unknown: bool
) -> list[MergeInput]:
    loras = [file if isinstance(file, WeightedLora) else WeightedLora(file) for file in files]
    return [lora.load(ignore_unknown) for lora in loras]


def merge_loras(
    files: Sequence[WeightedLora | str | Path],
    out: str | Path,
    rank: int | None = None,
    base: "Model | None" = None,
    precision: Precision = "fp16",
    ignore_unknown: bool = False,
) -> WriteResult:
    """Write the weighted sum of LoRA files: exact, with ranks added up, or truncated to a rank.

    Embeddings that are bundled with the files are all in the sum, unweighted.

    Args:
        files: the files, their weights and block weights; a path alone has weight 1.
        out: the new file, which must not exist.
        rank: the largest rank of a layer; None keeps the sum exact.
        base: the base model, which DoRA needs.
        precision: the dtype of the file.
        ignore_unknown: leave out what is not understood, with a warning.

    Raises:
        WeightsError: a file is damaged or has unknown tensors or layers, they are for different
            families or predictions, or the sum is zero.
        ConfigError: the rank is impossible, or block weights are for another family.
        OutputError: the file exists, or it cannot be written.
    """
    limit = _rank_limit(rank, None) if rank is not None else None
    target, inputs = _new_path(out), _load_files(files, ignore_unknown)
    loaded = [lora.file for lora in inputs]
    family = common_family(loaded)
    common_prediction_type(loaded)
    layers = add_loras(inputs, family, _base_lookup(base), ignore_unknown)
    if not layers:
        raise WeightsError(f"{target.name}: every layer has weight 0; not saved")
    if all(is_cancelled(layer) for layer in layers.values()):
        raise WeightsError(f"{target.name}: the LoRAs cancel each other out; not saved")
    energy = RetainedEnergy(0.0, 0.0)
    if limit is not None:
        layers, energy = truncate_layers(layers, limit)
    metadata = merge_metadata(loaded, layers, family, target.stem)
    embeddings = merge_embeddings(loaded)
    save_lora_file(target, layers, metadata, compute_dtype(precision), embeddings)
    return _write_result(target, layers, energy)


def resize_lora(
    source: str | Path,
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    base: "Model | None" = None,
    precision: Precision = "fp16",
    ignore_unknown: bool = False,
) -> WriteResult:
    """Write a LoRA at lower ranks; other kinds (LoHa, LoKr, with a base also DoRA) become LoRA.

    Embeddings that are bundled with it stay in it.

    Args:
        source: the file.
        out: the new file, which must not exist.
        rank: the largest rank of a layer; or
        energy: use the smallest rank of each layer that retains this share, above 0 to 1.
        base: the base model, which DoRA needs.
        precision: the dtype of the file.
        ignore_unknown: leave out what is not understood, with a warning.

    Raises:
        WeightsError: the file is damaged, has unknown tensors or layers, or is DoRA without a base.
        ConfigError: neither or both of rank and energy are given, or they are impossible.
        OutputError: the file exists, or it cannot be written.
    """
    limit = _rank_limit(rank, energy)
    file = load_lora_file(Path(source).expanduser(), ignore_unknown)
    target, family = _new_path(out), common_family([file])
    layers, retained = resize_layers(
        file, canonical_layers(file, family, ignore_unknown), limit, _base_lookup(base)
    )
    metadata = update_metadata(file, layers, family, target.stem)
    save_lora_file(target, layers, metadata, compute_dtype(precision), file.embeddings)
    return _write_result(target, layers, retained)


def extract_lora(
    tuned: "Model",
    base: "Model",
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    precision: Precision = "fp16",
) -> tuple[WriteResult, ExtractedLora]:
    """Write the difference of two models as a LoRA.

    Args:
        tuned: the model that was tuned.
        base: the model that it was tuned from.
        out: the new file, which must not exist.
        rank: the largest rank of a layer; or
        energy: use the smallest rank of each layer that retains this share, above 0 to 1.
        precision: the dtype of the file.

    Raises:
        WeightsError: the models are of different kinds, or do not differ.
        ConfigError: neither or both of rank and energy are given, or they are impossible.
        OutputError: the file exists, or it cannot be written.
    """
    limit, target = _rank_limit(rank, energy), _new_path(out)
    extracted = extract_difference(tuned, base, limit)
    metadata = LoraMetadata(
        name=target.stem,
        tag="",
        family=detect_family(base).name,
        prediction_type=tuned.scheduler_config.get("prediction_type", "epsilon"),
        parts={"all": PartSummary(*_rank_and_alpha(extracted.layers), len(extracted.layers))},
        resolution=tuned.default_size,
        tag_frequency={},
        dataset=target.stem,
        gate="none",
    )
    save_lora_file(target, extracted.layers, build_metadata(metadata), compute_dtype(precision))
    return _write_result(target, extracted.layers, extracted.energy), extracted


def fuse_loras(
    model: "Model",
    files: Sequence[WeightedLora | str | Path],
    precision: Precision = "fp32",
    strict: bool = True,
) -> set[str]:
    """Add LoRA files to a float32 model's weights; return the parts that changed.

    Args:
        model: its weights are changed in place.
        files: the files, their weights and block weights; a path alone has weight 1.
        precision: the dtype it will be saved in, which must be able to hold the sums.
        strict: refuse files that fit only in part or have unknown tensors; otherwise warn.

    Raises:
        WeightsError: a file does not fit the model, or a sum is not finite.
        ConfigError: block weights are for another family.
    """
    inputs = _load_files(files, not strict)
    return fuse_into_model(model, inputs, compute_dtype(precision), strict)


def _resolve_family(file: LoraFile, stated: str | None) -> str | None:
    """Return the family that a file is for: the one that a user states, or that the file shows."""
    family, source = detect_lora_family(file)
    if stated and family and source != "names" and stated != family:
        raise WeightsError(
            f"{file.path}: by its {source} it is for {get_family(family).title}, not for "
            f"{get_family(stated).title}; leave --family out"
        )
    return stated or family


def _new_path(out: str | Path) -> Path:
    from lorasmith.core.files import check_not_existing

    target = Path(out).expanduser()
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: a LoRA file's name ends in .safetensors; choose such a name")
    check_not_existing(target)
    return target


def _rank_limit(rank: int | None, energy: float | None) -> RankLimit:
    if (rank is None) == (energy is None):
        raise ConfigError("give either a rank (--rank 8) or an energy to keep (--energy 0.95)")
    if rank is not None:
        if rank < 1:
            raise ConfigError(f"rank {rank} is not possible; use a whole number, 1 or more")
        return "rank", rank
    if energy is None or not 0 < energy <= 1:
        raise ConfigError(f"energy {energy} is not possible; use a share above 0, up to 1")
    return "energy", energy


def _base_lookup(base: "Model | None") -> WeightLookup | None:
    return None if base is None else weight_lookup(base)


def _rank_and_alpha(layers: Mapping[str, LoraLayer]) -> tuple[int, float]:
    """Return the largest rank, and the alpha of all layers."""
    return max(layer.rank for layer in layers.values()), next(iter(layers.values())).alpha


def _write_result(
    path: Path, layers: Mapping[str, AdapterLayer], energy: RetainedEnergy | None = None
) -> WriteResult:
    ranks = tuple(sorted({layer.rank for layer in layers.values()}))
    return WriteResult(path, len(layers), ranks, energy or RetainedEnergy(0.0, 0.0))
