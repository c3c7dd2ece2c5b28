"""From the tensors of a LoRA file, in any key format, to its layers; every key is accounted for.

The scale is alpha / rank. If a file gives no alpha, it is the rank.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasmith.adapters.files.key_formats import (
    ALPHA,
    EMBEDDING_PREFIX,
    ParsedKey,
    parse_key,
)
from lorasmith.adapters.files.peft_config import PeftConfig, load_peft_config
from lorasmith.adapters.files.unknown_keys import example_keys, explain_unknown_keys
from lorasmith.adapters.kinds.base import AdapterLayer, Tensors
from lorasmith.adapters.naming.parse_layer_name import LayerPath, parse_layer_name
from lorasmith.core.errors import WeightsError
from lorasmith.core.safetensors_io import SafetensorsFile
from lorasmith.registries import ADAPTER_KINDS

_COMPUTABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_DENSE_ELEMENTS = 2**33
"""Files whose layers are dense changes (LoHa, LoKr, ...) with more elements together are refused.
SDXL has 3.4 thousand million."""


@dataclass(frozen=True)
class ParsedLora:
    """What the tensors of a LoRA file mean."""

    layers: dict[str, AdapterLayer]
    """Adapters by kohya name."""
    key_formats: tuple[str, ...]
    """The formats of the keys."""
    embeddings: dict[str, torch.Tensor]
    """Bundled textual inversion embeddings by key."""
    unknown_keys: tuple[str, ...]
    """Keys that are none of these."""


def parse_layers(file: SafetensorsFile) -> ParsedLora:
    """Return what a LoRA file's tensors mean. Tensors of unknown keys are not read.

    Raises:
        WeightsError: there are no layers; keys are duplicate or missing; tensors do not fit each
            other or are not finite. The message has names and counts.
    """
    path, header = file.path, file.header
    keys = {key: parsed for key in header.tensors if (parsed := parse_key(key))}
    groups = _group_keys(path, keys)
    others = [key for key in header.tensors if key not in keys]
    embeddings = [key for key in others if key.startswith(EMBEDDING_PREFIX)]
    unknown = [key for key in others if not key.startswith(EMBEDDING_PREFIX)]
    _move_empty_layers(groups, unknown)
    if not groups:
        problem = explain_unknown_keys(unknown) if unknown else "it has no LoRA tensors"
        raise WeightsError(
            f"{path}: holds no LoRA ({len(others)} of {len(header.tensors)} keys are no LoRA keys"
            f"{example_keys(others)}; {problem})"
            if others
            else f"{path}: holds no LoRA (it has no tensors)"
        )
    is_from_peft = any(key.startswith("base_model.") for key in keys)
    config = load_peft_config(path, header.metadata, is_from_peft)
    layers = {
        name: _LayerParser(path, name, _read_group(file, group), config).parse()
        for name, group in groups.items()
    }
    _require_affordable(path, layers)
    return ParsedLora(
        layers,
        _key_formats(keys.values()),
        {key: file.read_tensor(key) for key in embeddings},
        tuple(unknown),
    )


_Group = dict[str, tuple[str, ParsedKey]]
"""The keys of one layer by suffix."""


def _group_keys(path: Path, keys: Mapping[str, ParsedKey]) -> dict[str, _Group]:
    """Return the keys of each layer, by the layer's name where it is first in the file.

    Raises:
        WeightsError: a layer's tensor is there twice, maybe under two names.
    """
    names: dict[LayerPath | str, str] = {}
    groups: dict[str, _Group] = {}
    for key, parsed in keys.items():
        layer_path = parse_layer_name(parsed.layer)
        name = names.setdefault(layer_path or parsed.layer, parsed.layer)
        group = groups.setdefault(name, {})
        if parsed.suffix in group:
            first = group[parsed.suffix][0]
            raise WeightsError(
                f"{path}: {name} is in it twice, in two key formats or under two names, as {first} "
                f"and as {key}; it is no valid LoRA file"
            )
        group[parsed.suffix] = key, parsed
    return groups


def _move_empty_layers(groups: dict[str, _Group], unknown: list[str]) -> None:
    """Count layers that have an alpha, and otherwise unknown keys only, among the unknown keys."""
    unknown_names = {key.rpartition(".")[0] for key in unknown}
    unknown_names |= {name.rpartition(".")[0] for name in unknown_names}
    for name, group in list(groups.items()):
        if group.keys() == {ALPHA} and group[ALPHA][1].raw_name in unknown_names:
            unknown.append(group[ALPHA][0])
            del groups[name]


def _read_group(file: SafetensorsFile, group: _Group) -> "_LayerTensors":
    tensors = {
        suffix: _to_computable(file.path, key, suffix, file.read_tensor(key))
        for suffix, (key, _) in group.items()
    }
    # Only names with dots come from PEFT, whose alphas are in the metadata.
    return _LayerTensors(tensors, any("." in parsed.raw_name for _, parsed in group.values()))


@dataclass(frozen=True)
class _LayerTensors:
    """The tensors of one layer by suffix."""

    tensors: dict[str, torch.Tensor]
    may_be_from_peft: bool


def _require_affordable(path: Path, layers: Mapping[str, AdapterLayer]) -> None:
    """Refuse a file whose dense layers together are larger than any model."""
    dense = [layer for layer in layers.values() if layer.direction.lora_factors() is None]
    elements = sum(math.prod(layer.matrix_shape) for layer in dense)
    if elements > MAX_DENSE_ELEMENTS:
        raise WeightsError(
            f"{path}: its {len(dense)} layers of {dense[0].kind} declare {elements:,} elements "
            "together, more than any model has"
        )


def _to_computable(path: Path, key: str, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype that torch computes with."""
    if tensor.is_complex() or (not tensor.is_floating_point() and suffix != ALPHA):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {key} holds {dtype} numbers; quantised LoRAs are unsupported")
    if not tensor.numel():
        raise WeightsError(f"{path}: {key} is empty ({list(tensor.shape)}); the file is damaged")
    return tensor if tensor.dtype in _COMPUTABLE_DTYPES else tensor.float()


def _key_formats(keys: Iterable[ParsedKey]) -> tuple[str, ...]:
    """Return the formats that keys show. Kinds that exist in one format only are kohya's."""
    return tuple(dict.fromkeys(key.key_format for key in keys if key.key_format)) or ("kohya",)


class _LayerParser:
    """Finds out what the tensors of one layer mean."""

    def __init__(
        self,
        path: Path,
        name: str,
        stored: _LayerTensors,
        peft_config: PeftConfig,
    ) -> None:
        self.path, self.name = path, name
        self.peft_config = peft_config if stored.may_be_from_peft else None
        self.tensors = dict(stored.tensors)
        self.alpha = self.tensors.pop(ALPHA, None)

    def parse(self) -> AdapterLayer:
        self._require_finite()
        kinds = list(ADAPTER_KINDS.load_all().values())
        modifiers = [kind for kind in kinds if kind.is_modifier]
        plain = dict(self.tensors)
        modifying = []
        for kind in modifiers:
            suffixes = kind.required_suffixes | kind.optional_suffixes
            part = {suffix: plain.pop(suffix) for suffix in suffixes & plain.keys()}
            if part:
                modifying.append((kind, part))
        layer = self._parse_plain([kind for kind in kinds if not kind.is_modifier], plain)
        for kind, part in modifying:
            self._require_no_gap(kind, part)
            try:
                layer = kind.wrap(layer, part)
            except (ValueError, RuntimeError, IndexError) as error:
                raise self._error(str(error)) from error
        return layer

    def _parse_plain(self, kinds: list[type[AdapterLayer]], tensors: Tensors) -> AdapterLayer:
        suffixes = frozenset(tensors)
        for kind in kinds:
            required, allowed = kind.required_suffixes, kind.optional_suffixes
            if suffixes and required <= suffixes <= required | allowed:
                self._require_no_gap(kind, tensors)
                return self._build(kind, tensors)
        for kind in kinds:
            missing = kind.required_suffixes - suffixes
            if suffixes and missing and suffixes <= kind.required_suffixes | kind.optional_suffixes:
                raise WeightsError(
                    f"{self.path}: {self.name}.{min(missing)} is missing; the file is incomplete"
                )
        raise self._error(
            f"has {', '.join(sorted(suffixes)) or 'no factors'}, which are no adapter; the file is "
            "incomplete"
        )

    def _require_no_gap(self, kind: type[AdapterLayer], tensors: Tensors) -> None:
        if gap := kind.find_gap(frozenset(tensors)):
            raise self._error(f"{gap}; the file is incomplete")

    def _build(self, kind: type[AdapterLayer], tensors: Tensors) -> AdapterLayer:
        """Return the layer, after a trial of its tensors on the meta device."""
        if self.alpha is not None and self.alpha.numel() != 1:
            raise self._error(f"has impossible shapes ({self._shapes()})")
        try:
            trial = kind.from_tensors({key: t.to("meta") for key, t in tensors.items()}, 1.0)
            trial.check_shapes()
        except (RuntimeError, IndexError, TypeError) as error:
            raise self._error(
                f"has factors that do not fit each other ({self._shapes()})"
            ) from error
        except ValueError as error:
            raise self._error(f"has {error} ({self._shapes()})") from error
        return kind.from_tensors(tensors, self._find_alpha(trial.rank or 1))

    def _find_alpha(self, rank: int) -> float:
        if self.alpha is not None:
            return float(self.alpha)
        layer_path = parse_layer_name(self.name)
        alpha = None
        if self.peft_config and layer_path:
            alpha = self.peft_config.alpha_of(layer_path, rank)
        return float(rank) if alpha is None else alpha

    def _require_finite(self) -> None:
        alpha = [] if self.alpha is None else [self.alpha]
        if not all(bool(torch.isfinite(t).all()) for t in (*self.tensors.values(), *alpha)):
            raise self._error("holds values that are not finite; the file is damaged")

    def _shapes(self) -> str:
        tensors = {key.removeprefix("lora_").split(".")[0]: t for key, t in self.tensors.items()}
        if self.alpha is not None:
            tensors[ALPHA] = self.alpha
        return ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in tensors.items())

    def _error(self, message: str) -> WeightsError:
        return WeightsError(f"{self.path}: {self.name} {message}")
