"""What a stored model is, in brief: family, parts and number formats, without reading weights."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lorasmith.models.builtin_families import MINIATURE
from lorasmith.models.family import ModelVariant
from lorasmith.models.files.build import canonical_state_dict, check_tensors
from lorasmith.models.files.source import build_empty_part, naming_part
from lorasmith.models.load import EMBEDDED, open_source


@dataclass(frozen=True)
class NetworkInfo:
    """One network of a model."""

    name: str
    """``unet``, ``vae``, ``text_encoder`` or ``text_encoder_2``."""
    tensors: int
    """Its tensors."""
    formats: tuple[str, ...]
    """Number formats of its weights, the most frequent first; several where they are mixed."""


@dataclass(frozen=True)
class ModelInfo:
    """A stored model."""

    path: Path
    """Its folder or file."""
    title: str
    """What it is, for people."""
    variant: ModelVariant
    """What it is."""
    single_file: bool
    """Whether it is one file."""
    parts: tuple[NetworkInfo, ...]
    """Its networks."""
    unused: tuple[str, ...]
    """What is there that lorasmith has no use for."""


def read_model_info(name: str | Path | None = None) -> ModelInfo:
    """Look at a stored model; all its headers are read and checked.

    Raises:
        WeightsError: no such model, or a part is missing or damaged.
    """
    source = open_source(name)
    networks = {part: build_empty_part(source, part) for part in source.networks}
    names = {part: list(canonical_state_dict(network)) for part, network in networks.items()}
    source.check(names)
    parts = []
    for part, inside in names.items():
        with naming_part(source.path, part):
            tensors = source.tensors(part, inside)
            check_tensors(networks[part], tensors)
        formats = Counter(tensors[one].dtype for one in inside)
        parts.append(NetworkInfo(part, len(inside), tuple(f for f, _ in formats.most_common())))
    title = MINIATURE.title if source.path == EMBEDDED else source.variant.title
    single = source.path.is_file()
    return ModelInfo(source.path, title, source.variant, single, tuple(parts), source.unused)
