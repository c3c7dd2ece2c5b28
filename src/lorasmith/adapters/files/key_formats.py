"""Keys of LoRA files in every key format: which layer they belong to, and which tensor they hold.

The formats:

- kohya (sd-scripts): ``NAME.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; LyCORIS adds
  ``.lora_mid.weight``, ``.hada_w1_a``, ``.lokr_w1``, ``.dora_scale``, ``.diff`` and the like;
- PEFT, and diffusers through it: ``PATH.lora_A.weight``, ``.lora_B.weight``,
  ``.lora_magnitude_vector.weight``, sometimes with an adapter's name before ``weight``;
- early diffusers: ``PATH.lora.down.weight``; ``PATH.lora_linear_layer.down.weight`` in text
  encoders; ``PATH.processor.to_q_lora.down.weight`` from ``save_attn_procs``;
- ``PATH.magnitude`` for DoRA in some trainers.

One file may mix them. Suffixes of registered adapter kinds (`lorasmith.registries.ADAPTER_KINDS`)
are read as they are.
"""

from functools import lru_cache
from typing import NamedTuple

from lorasmith.adapters.kinds.dora import MAGNITUDE
from lorasmith.adapters.kinds.locon import MID
from lorasmith.adapters.kinds.lora import DOWN, UP
from lorasmith.adapters.naming.parse_layer_name import (
    MAX_NAME_LENGTH,
    is_kohya_name,
    parse_layer_name,
)
from lorasmith.registries import ADAPTER_KINDS

ALPHA = "alpha"

_ENDINGS: tuple[tuple[str, str, str], ...] = (
    (".lora_down.weight", DOWN, "kohya"),
    (".lora_up.weight", UP, "kohya"),
    (".lora_mid.weight", MID, "kohya"),
    (".alpha", ALPHA, ""),
    (".lora_linear_layer.down.weight", DOWN, "early diffusers"),
    (".lora_linear_layer.up.weight", UP, "early diffusers"),
    (".lora.down.weight", DOWN, "early diffusers"),
    (".lora.up.weight", UP, "early diffusers"),
    ("_lora.down.weight", DOWN, "early diffusers"),
    ("_lora.up.weight", UP, "early diffusers"),
)
"""Key endings, the suffix that they stand for, and the key format that they show. The first match
counts."""
_PEFT_ENDINGS = {".lora_A": DOWN, ".lora_B": UP, ".lora_magnitude_vector": MAGNITUDE}
"""The same of PEFT's, in front of ``.weight`` or of an adapter's name and ``.weight``."""

EMBEDDING_PREFIX = "bundle_emb."
"""What the keys of textual inversion embeddings start with that OneTrainer puts into a file."""
MAX_KEY_LENGTH = MAX_NAME_LENGTH + 64
"""Longer keys are no LoRA keys."""


class ParsedKey(NamedTuple):
    """One key of a LoRA file."""

    layer: str
    """The layer's kohya name (with underscores), or the name in the file if it is unknown."""
    suffix: str
    """The tensor: `ALPHA` or a suffix of an adapter kind."""
    key_format: str
    """``kohya``, ``diffusers`` or ``early diffusers``; empty if the key does not show it."""
    raw_name: str
    """The layer's name in the file."""


def parse_key(key: str) -> ParsedKey | None:
    """Split a key of a LoRA file; None if it is not one."""
    if len(key) > MAX_KEY_LENGTH:
        return None
    name, suffix, key_format = _split_key(key)
    return ParsedKey(to_kohya_name(name), suffix, key_format, name) if name and suffix else None


def _split_key(key: str) -> tuple[str, str, str]:
    """Return a key's name, suffix and format; the suffix is empty if it has no known ending."""
    for ending, suffix, key_format in _ENDINGS:
        if key.endswith(ending):
            return key.removesuffix(ending), suffix, key_format
    stem = key.removesuffix(".weight")
    for text in (stem, stem.rpartition(".")[0]):
        name, _, ending = text.rpartition(".")
        suffix = _PEFT_ENDINGS.get(f".{ending}", "")
        # Only magnitudes may come without `.weight`.
        if suffix and (key.endswith(".weight") or suffix == MAGNITUDE):
            return name, suffix, "diffusers"
    for suffix in _kind_suffixes(ADAPTER_KINDS.names()):
        if key.endswith(suffix) and key[: -len(suffix)].endswith("."):
            return key[: -len(suffix) - 1], suffix, ""
    return key, "", ""


@lru_cache(maxsize=4)
def _kind_suffixes(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Return the key endings of adapter kinds, the longest first."""
    items = [ADAPTER_KINDS.get(kind) for kind in kinds]
    suffixes = {suffix for kind in items for suffix in kind.required_suffixes}
    suffixes |= {suffix for kind in items for suffix in kind.optional_suffixes}
    return tuple(sorted(suffixes, key=lambda suffix: (-len(suffix), suffix)))


def to_kohya_name(name: str) -> str:
    """Return a layer's kohya name (with underscores) for its name in any format.

    Kohya's own names stay as they are, with sgm's blocks or diffusers'; others get diffusers' order
    of blocks, because the name does not show the family. A name that is no layer of a U-Net or a
    text encoder is returned unchanged.
    """
    layer_path = parse_layer_name(name)
    return name if layer_path is None or is_kohya_name(name) else layer_path.kohya_name(None)
