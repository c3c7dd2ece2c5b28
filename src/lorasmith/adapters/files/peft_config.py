"""The configuration of PEFT adapters, which has the alphas that diffusers' LoRA files leave out.

diffusers stores it in the metadata entry ``lora_adapter_metadata``, one JSON object with the fields
of PEFT's ``LoraConfig`` prefixed by ``unet.``, ``text_encoder.`` and ``text_encoder_2.``. PEFT's
own ``save_pretrained`` writes ``adapter_config.json`` next to the weights.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorasmith.adapters.kinds.lora import LoraLayer
from lorasmith.adapters.naming.module_names import LayerPath
from lorasmith.core.errors import WeightsError

METADATA_KEY = "lora_adapter_metadata"
_FILE = "adapter_config.json"
_ALL_PARTS = ""
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

    def alpha_of(self, layer_path: LayerPath, rank: int) -> float | None:
        """Return the alpha whose alpha / rank is the scale of a layer; None if there is none.

        A pattern applies if it is the path or its end, as a regular expression. rsLoRA scales by
        alpha / sqrt(rank) (arXiv:2312.03732).

        Raises:
            WeightsError: the fields are not what PEFT writes.
        """
        has_part = f"{layer_path.part}.lora_alpha" in self._entries
        prefix = f"{layer_path.part}." if has_part else _ALL_PARTS
        alpha = self._entries.get(f"{prefix}lora_alpha")
        if alpha is None:
            return None
        patterns = self._entries.get(f"{prefix}alpha_pattern") or {}
        try:
            matches = (v for pattern, v in patterns.items() if _matches(pattern, layer_path.path))
            alpha = float(next(matches, alpha))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise WeightsError(f"{self._source}: cannot be understood ({error})") from error
        return alpha * rank**0.5 if self._entries.get(f"{prefix}use_rslora") else alpha


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
            text = config_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(
                f"{path}: PEFT wrote it, and keeps its alpha in {_FILE} beside it, which cannot be "
                f"read ({error}); copy it there"
            ) from error
    try:
        entries = json.loads(text or "{}")
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


def _matches(pattern: str, path: str) -> bool:
    # Files made with transformers 4 have one more level in the names of text encoder layers.
    return re.match(rf"(.*\.)?({pattern.replace('text_model.', '')})$", path) is not None


def _most_common(values: Iterable[_Value]) -> _Value:
    return Counter(values).most_common(1)[0][0]
