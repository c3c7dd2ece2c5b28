"""Family, networks and dtypes of a stored model, from its headers."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.families.builtin import MINIATURE
from lorasmith.models.families.family import ModelVariant
from lorasmith.models.files.build import canonical_state_dict, check_tensors
from lorasmith.models.files.configs import TOKENIZERS
from lorasmith.models.files.open import EMBEDDED, open_source
from lorasmith.models.files.part_sizes import PartSize, measure_side_parts, measure_tensors
from lorasmith.models.files.source import build_empty_part, naming_part
from lorasmith.models.scheduler_config import IMPOSSIBLE_PREDICTION, needs_impossible_prediction


@dataclass(frozen=True)
class NetworkInfo:
    """One network of a model."""

    name: str
    """``unet``, ``vae``, ``text_encoder`` or ``text_encoder_2``."""
    tensors: int
    """How many tensors it has."""
    formats: tuple[str, ...]
    """Dtypes of its weights, the most frequent first."""


@dataclass(frozen=True)
class ModelInfo:
    """A stored model."""

    path: Path
    title: str
    """What it is, for people."""
    variant: ModelVariant
    """What it is."""
    single_file: bool
    parts: tuple[NetworkInfo, ...]
    unused: tuple[str, ...]
    """Parts or tensors that lorasmith does not use."""
    sizes: Mapping[str, PartSize]
    """Sizes of the networks, then of what else with weights is in the folder, by part."""


def read_model_info(name: str | Path | None = None) -> ModelInfo:
    """Read and check all headers of a stored model, and its tokenizers.

    Warns about a model that can draw nothing but black.

    Raises:
        WeightsError: there is no such model, or a part is missing or damaged.
    """
    source = open_source(name)
    networks = {part: build_empty_part(source, part) for part in source.networks}
    names = {part: list(canonical_state_dict(network)) for part, network in networks.items()}
    source.check(names)
    parts, sizes = [], {}
    for part, part_names in names.items():
        with naming_part(source.path, part):
            tensors = source.tensors(part, part_names)
            check_tensors(networks[part], tensors)
        sizes[part] = measure_tensors(tensors[name] for name in part_names)
        formats = Counter(tensors[name].dtype for name in part_names)
        parts.append(NetworkInfo(part, len(part_names), tuple(f for f, _ in formats.most_common())))
        if part in TOKENIZERS:
            source.tokenizer(TOKENIZERS[part])
    if needs_impossible_prediction(source.config("scheduler")):
        warnings.warn(f"model {source.path}: {IMPOSSIBLE_PREDICTION}", LorasmithWarning, 2)
    title = MINIATURE.title if source.path == EMBEDDED else source.variant.title
    is_single_file = source.path.is_file()
    if not is_single_file:
        sizes |= measure_side_parts(source.path)
    return ModelInfo(
        source.path, title, source.variant, is_single_file, tuple(parts), source.unused, sizes
    )
