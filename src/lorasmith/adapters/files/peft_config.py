"""The settings of PEFT's adapters, which say the alphas that diffusers' LoRA files leave out.

diffusers keeps them in the metadata entry ``lora_adapter_metadata``, one JSON object with the
fields of PEFT's ``LoraConfig`` behind ``unet.``, ``text_encoder.`` and ``text_encoder_2.``. PEFT's
own ``save_pretrained`` writes them to ``adapter_config.json`` beside the weights.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorasmith.adapters.files.layer_kinds import LoraLayer
from lorasmith.adapters.naming.module_names import LayerPath
from lorasmith.core.errors import WeightsError

METADATA_KEY = "lora_adapter_metadata"
_FILE = "adapter_config.json"
_ALL_PARTS = ""


class PeftConfig:
    """What settings of PEFT say about the alpha of each layer."""

    def __init__(self, entries: Mapping[str, Any], where: str) -> None:
        """Keep settings by ``PART.FIELD``, or by ``FIELD`` if they are for all parts."""
        self._entries = entries
        self._where = where

    def alpha_of(self, module: LayerPath, rank: int) -> float | None:
        """Return the alpha whose alpha / rank is the scale of a layer; None if nothing is said.

        A pattern counts if it is the path or its end, as a regular expression. rsLoRA scales by
        alpha / sqrt(rank) (arXiv:2312.03732).

        Raises:
            WeightsError: the settings are not what PEFT writes.
        """
        start = f"{module.part}." if f"{module.part}.lora_alpha" in self._entries else _ALL_PARTS
        alpha = self._entries.get(f"{start}lora_alpha")
        if alpha is None:
            return None
        patterns = self._entries.get(f"{start}alpha_pattern") or {}
        try:
            fits = (value for key, value in patterns.items() if _fits(key, module.path))
            plain = float(next(fits, alpha))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise WeightsError(f"{self._where}: cannot be understood ({error})") from error
        return plain * rank**0.5 if self._entries.get(f"{start}use_rslora") else plain


def load_peft_config(path: Path, metadata: Mapping[str, str], from_peft: bool) -> PeftConfig:
    """Return the settings that come with a LoRA file.

    Args:
        path: the file.
        metadata: its metadata.
        from_peft: whether its keys are those that PEFT itself writes, which are nothing without
            the settings beside the file.

    Raises:
        WeightsError: they are damaged, or missing where they are needed.
    """
    text, where = metadata.get(METADATA_KEY), f"{path}: metadata {METADATA_KEY}"
    if text is None and from_peft:
        beside = path.with_name(_FILE)
        where = str(beside)
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(
                f"{path}: PEFT wrote it, and keeps its alpha in {_FILE} beside it, which cannot be "
                f"read ({error}); copy it there"
            ) from error
    try:
        entries = json.loads(text or "{}")
    except ValueError as error:
        raise WeightsError(f"{where}: not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise WeightsError(f"{where}: not a JSON object")
    return PeftConfig(entries, where)


PeftLayers = Mapping[LayerPath, tuple[LoraLayer, torch.Tensor | None]]
"""Layers as diffusers' naming holds them: factors, and DoRA's lengths or none."""


def build_peft_metadata(layers: PeftLayers) -> str:
    """Return the metadata entry that lets diffusers rebuild adapters, a JSON object.

    The rank and alpha that most layers of a part have are its own; others stand in patterns.
    """
    entries: dict[str, Any] = {}
    for part in dict.fromkeys(module.part for module in layers):
        written = {m.path: entry for m, entry in layers.items() if m.part == part}
        own = {path: layer for path, (layer, _) in written.items()}
        rank = _most_common(layer.rank for layer in own.values())
        alpha = _most_common(layer.alpha for layer in own.values())
        fields = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {p: one.rank for p, one in own.items() if one.rank != rank},
            "alpha_pattern": {p: one.alpha for p, one in own.items() if one.alpha != alpha},
            "target_modules": sorted(own),
            "use_dora": any(lengths is not None for _, lengths in written.values()),
            "use_rslora": False,
            "lora_bias": False,
        }
        entries |= {f"{part}.{name}": value for name, value in fields.items()}
    return json.dumps(entries, indent=2, sort_keys=True)


def _fits(pattern: str, path: str) -> bool:
    # Files for models of transformers 4 name text encoders' layers with one level more.
    return re.match(rf"(.*\.)?({pattern.replace('text_model.', '')})$", path) is not None


def _most_common(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]
