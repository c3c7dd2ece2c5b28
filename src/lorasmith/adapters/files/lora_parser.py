"""From the tensors of a LoRA file, in any key format, to its layers; every key is accounted for.

The scale is alpha / rank. If a file gives no alpha, it is the rank.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from lorasmith.adapters.files.key_formats import (
    ALPHA,
    ParsedKey,
    explain_unknown_keys,
    parse_key,
)
from lorasmith.adapters.files.peft_config import PeftConfig, load_peft_config
from lorasmith.adapters.kinds.base import AdapterLayer, Tensors
from lorasmith.adapters.naming.module_names import parse_kohya_name
from lorasmith.core.errors import WeightsError
from lorasmith.registries import ADAPTER_KINDS

_COMPUTABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EXAMPLES = 3


def parse_layers(
    path: Path, tensors: Tensors, metadata: Mapping[str, str]
) -> tuple[dict[str, AdapterLayer], tuple[str, ...]]:
    """Return a file's layers by kohya name, and the key formats that it uses.

    Raises:
        WeightsError: keys are unknown, duplicate or missing; tensors do not fit each other or are
            not finite. The message has names and counts.
    """
    keys = _parse_keys(path, tensors)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, parsed in keys.items():
        group = groups.setdefault(parsed.layer, {})
        if parsed.suffix in group:
            raise WeightsError(
                f"{path}: {parsed.layer} is in it twice, in two key formats, the second time as "
                f"{key}; it is no valid LoRA file"
            )
        group[parsed.suffix] = _to_computable(path, key, tensors[key])
    with_dots = {key.layer for key in keys.values() if "." in key.raw_name}
    config = load_peft_config(path, metadata, any(key.startswith("base_model.") for key in keys))
    layers = {
        name: _LayerParser(path, name, group, config if name in with_dots else None).parse()
        for name, group in groups.items()
    }
    return layers, _key_formats(keys.values())


def _parse_keys(path: Path, tensors: Tensors) -> dict[str, ParsedKey]:
    if not tensors:
        raise WeightsError(f"{path}: holds no LoRA (it has no tensors)")
    parsed_keys = {key: parsed for key in tensors if (parsed := parse_key(key))}
    unknown = [key for key in tensors if key not in parsed_keys]
    if unknown:
        raise WeightsError(
            f"{path}: {len(unknown)} of {len(tensors)} keys are no LoRA keys, first "
            f"{', '.join(unknown[:_EXAMPLES])}; {explain_unknown_keys(unknown, bool(parsed_keys))}"
        )
    return parsed_keys


def _to_computable(path: Path, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype that torch computes with."""
    if not tensor.is_floating_point() and not key.endswith(ALPHA):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {key} holds {dtype} numbers; quantised LoRAs are unsupported")
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
        tensors: dict[str, torch.Tensor],
        peft_config: PeftConfig | None,
    ) -> None:
        self.path, self.name, self.peft_config = path, name, peft_config
        self.alpha = tensors.pop(ALPHA, None)
        self.tensors = tensors

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
            except ValueError as error:
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
        except (RuntimeError, IndexError) as error:
            raise self._error(
                f"has factors that do not fit each other ({self._shapes()})"
            ) from error
        except ValueError as error:
            raise self._error(f"has {error} ({self._shapes()})") from error
        return kind.from_tensors(tensors, self._find_alpha(trial.rank or 1))

    def _find_alpha(self, rank: int) -> float:
        if self.alpha is not None:
            return float(self.alpha)
        layer_path = parse_kohya_name(self.name)
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
