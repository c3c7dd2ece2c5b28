"""The configuration of PEFT adapters, which has the alphas that diffusers' LoRA files leave out.

diffusers stores it in the metadata entry ``lora_adapter_metadata``, one JSON object with the fields
of PEFT's ``LoraConfig`` prefixed by ``unet.``, ``text_encoder.`` and ``text_encoder_2.``. PEFT's
own ``save_pretrained`` writes ``adapter_config.json`` next to the weights.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.parse_layer_name import LayerPath
from lorasmith.core.errors import WeightsError
from lorasmith.core.text.json_text import parse_json

METADATA_KEY = "lora_adapter_metadata"
_FILE = "adapter_config.json"
_ALL_PARTS = ""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
"""Patterns that are names of layers, and are compared as text."""
_MAX_BYTES = 16 * 2**20
"""Longer configuration files are refused; they have a few KiB."""
_EXAMPLE_LENGTH = 60
_Value = TypeVar("_Value")


class PeftConfig:
    """The alpha of each layer by PEFT's configuration."""

    def __init__(self, entries: Mapping[str, Any], source: str) -> None:
        """Create it from the fields.

        Args:
            entries: values by ``PART.FIELD``, or by ``FIELD`` if they apply to all parts.
            source: where they were read, for messages.
        """
        self._entries = entries
        self._source = source
        self._patterns: dict[str, _Patterns] = {}

    def alpha_of(self, layer_path: LayerPath, rank: int) -> float | None:
        """Return the alpha whose alpha / rank is the scale of a layer; None if there is none.

        A pattern applies if it is the path or its end. PEFT reads patterns as regular expressions;
        here they are names, because an expression from a file may run forever. rsLoRA scales by
        alpha / sqrt(rank) (arXiv:2312.03732).

        Raises:
            WeightsError: the fields are not what PEFT writes, or a pattern is no name.
        """
        has_part = f"{layer_path.part}.lora_alpha" in self._entries
        prefix = f"{layer_path.part}." if has_part else _ALL_PARTS
        alpha = self._entries.get(f"{prefix}lora_alpha")
        if alpha is None:
            return None
        if prefix not in self._patterns:
            self._patterns[prefix] = self._read_patterns(f"{prefix}alpha_pattern")
        try:
            alpha = float(self._patterns[prefix].find(layer_path.path, alpha))
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightsError(f"{self._source}: cannot be understood ({error})") from error
        if not math.isfinite(alpha):
            raise WeightsError(f"{self._source}: an alpha is not finite")
        return alpha * rank**0.5 if self._entries.get(f"{prefix}use_rslora") else alpha

    def _read_patterns(self, field: str) -> "_Patterns":
        entry = self._entries.get(field) or {}
        if not isinstance(entry, dict):
            raise WeightsError(f"{self._source}: {field} is no JSON object")
        names: dict[str, Any] = {}
        paths: dict[str, Any] = {}
        for order, (pattern, value) in enumerate(entry.items()):
            name = _plain_name(pattern)
            if name is None:
                raise WeightsError(
                    f"{self._source}: {field} has {pattern[:_EXAMPLE_LENGTH]!r}, which is no name "
                    "of a layer; expressions from files are not run, so write the layers' names "
                    "there"
                )
            known = paths if pattern.startswith("^") else names
            known.setdefault(name, (order, value))
        return _Patterns(names, paths)


class _Patterns:
    """Values by the names of layers."""

    def __init__(
        self, names: Mapping[str, tuple[int, Any]], paths: Mapping[str, tuple[int, Any]]
    ) -> None:
        """Create it from values with their position: by the path's end, and by the whole path."""
        self._names, self._paths = names, paths

    def find(self, path: str, default: Any) -> Any:
        """Return the value of the first pattern that is the path or its end."""
        words = path.split(".")
        ends = (".".join(words[start:]) for start in range(len(words)))
        matches = [self._names[end] for end in ends if end in self._names]
        if path in self._paths:
            matches.append(self._paths[path])
        return min(matches, key=lambda match: match[0])[1] if matches else default


def load_peft_config(path: Path, metadata: Mapping[str, str], is_from_peft: bool) -> PeftConfig:
    """Return the configuration that comes with a LoRA file; empty if there is none.

    Args:
        path: the file.
        metadata: its metadata.
        is_from_peft: whether its keys are those of PEFT's ``save_pretrained``, which need the
            configuration file next to it.

    Raises:
        WeightsError: the configuration is damaged, or missing where it is needed.
    """
    text, source = metadata.get(METADATA_KEY), f"{path}: metadata {METADATA_KEY}"
    if text is None and is_from_peft:
        config_file = path.with_name(_FILE)
        source = str(config_file)
        try:
            text = _read_config_file(config_file)
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(
                f"{path}: PEFT wrote it, and keeps its alpha in {_FILE} beside it, which cannot be "
                f"read ({error}); copy it there"
            ) from error
    try:
        entries = parse_json(text or "{}")
    except ValueError as error:
        raise WeightsError(f"{source}: not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise WeightsError(f"{source}: not a JSON object")
    return PeftConfig(entries, source)


PeftLayers = Mapping[LayerPath, tuple[LoraLayer, torch.Tensor | None]]
"""Factors, and DoRA's magnitude or None, of each layer."""


def build_peft_metadata(layers: PeftLayers) -> str:
    """Return the metadata entry from which diffusers rebuilds adapters, a JSON object.

    ``r`` and ``lora_alpha`` of a part are those of most of its layers; patterns name the others.
    """
    entries: dict[str, Any] = {}
    for part in dict.fromkeys(layer_path.part for layer_path in layers):
        stored = {
            layer_path.path: entry
            for layer_path, entry in layers.items()
            if layer_path.part == part
        }
        loras = {path: lora for path, (lora, _) in stored.items()}
        rank = _most_common(lora.rank for lora in loras.values())
        alpha = _most_common(lora.alpha for lora in loras.values())
        fields = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {p: lora.rank for p, lora in loras.items() if lora.rank != rank},
            "alpha_pattern": {p: lora.alpha for p, lora in loras.items() if lora.alpha != alpha},
            "target_modules": sorted(loras),
            "use_dora": any(magnitude is not None for _, magnitude in stored.values()),
            "use_rslora": False,
            "lora_bias": False,
        }
        entries |= {f"{part}.{name}": value for name, value in fields.items()}
    return json.dumps(entries, indent=2, sort_keys=True)


def _read_config_file(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no such file: {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise OSError(f"it has more than {_MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")


def _plain_name(pattern: str) -> str | None:
    """Return the name of a layer that a pattern is; None if it is an expression.

    PEFT writes ``^`` in front of a whole path. Files made with transformers 4 have one more level
    in the names of text encoder layers.
    """
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    return name.replace("text_model.", "") if _PLAIN_NAME.fullmatch(name) else None


def _most_common(values: Iterable[_Value]) -> _Value:
    return Counter(values).most_common(1)[0][0]
