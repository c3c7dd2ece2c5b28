"""Which layers a target names: presets, blocks, and patterns over module paths.

A target is ``LAYER_TYPES``, ``BLOCKS`` or ``KINDS@BLOCKS``, each one or more words joined by ``+``:

- a kind (`LAYER_TYPES`): ``attention``, ``attention+ff``, ``all-linear+conv``, ``+conv``, ...;
- ``text-encoder``: the text encoders;
- a block: ``down``, ``mid``, ``up``, ``down.1``, ``up.0``, a name of block weight vectors
  (``IN04``, ``MID``, ``OUT05``) or `PAIRS`. Blocks without a kind mean ``all-linear`` in them, and
  kinds joined to blocks are added there: ``up.1+conv`` is ``all-linear+conv@up.1``;
- a pattern over module paths (``up_blocks.1.*.attn2.*``; ``*`` also crosses dots), which may stand
  for kinds or blocks. The path of a module stands for every layer below it. Patterns are about the
  U-Net unless they start with ``text_encoder``.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from lorasmith.adapters.naming.layer_names import UNET, LayerRef
from lorasmith.core.errors import ConfigError, did_you_mean

LAYER_KINDS: dict[str, tuple[str, ...]] = {
    "cross-attention": ("*.attn2.to_[qkv]", "*.attn2.to_out.0"),
    "self-attention": ("*.attn1.to_[qkv]", "*.attn1.to_out.0"),
    "attention": ("*.attn[12].to_[qkv]", "*.attn[12].to_out.0"),
    "ff": ("*.ff.net.0.proj", "*.ff.net.2"),
    "all-linear": ("*.attentions.*",),
    "conv": ("*.resnets.*", "*.downsamplers.*", "*.upsamplers.*"),
}
"""Kinds of U-Net layers, as patterns over module paths.

``all-linear`` is every layer of the transformers, the 1x1 convolutions around those of SD 1.x
included; ``conv`` is everything in resnets and samplers.
"""

SDXL_BLOCKS: dict[str, tuple[str, ...]] = {
    "b-lora": ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1"),
    "b-lora-content": ("up_blocks.0.attentions.0",),
    "b-lora-style": ("up_blocks.0.attentions.1",),
}
"""The two transformers of SDXL that carry content and style (B-LoRA, arXiv:2403.14572)."""

TEXT = "text-encoder"
_PRESETS = (*LAYER_KINDS, "attention+ff", "+conv", TEXT, "down", "mid", "up", *SDXL_BLOCKS)
_BLOCK = re.compile(r"(?P<side>down|up)(\.(?P<level>\d+))?|mid")
_VECTOR = re.compile(r"(IN|OUT)\d\d|MID")
_WILD = re.compile(r"[*?\[]")

Test = Callable[[LayerRef], bool]


def match_target(target: str, refs: Sequence[LayerRef], field: str) -> list[LayerRef]:
    """Return the layers that one target names, in the order of ``places``.

    Args:
        target: see the module's description.
        places: every layer of the model.
        field: the setting that it stands in, for messages.

    Raises:
        ConfigError: an unknown word, or no layer fits; close matches are named.
    """
    kinds, blocks = _parse(target, field)
    wanted = [_kind_test(word) for word in kinds]
    where = [_block_test(word) for word in blocks]
    found = [
        place
        for place in refs
        if any(test(place) for test in wanted) and (not where or any(test(place) for test in where))
    ]
    if not found:
        hint = _hint([*kinds, *blocks], wanted, refs)
        raise ConfigError(f"{field}: {target!r} fits no layer of this model{hint}")
    return found


def _parse(target: str, field: str) -> tuple[list[str], list[str]]:
    """Return the words for kinds (or patterns) and those for blocks."""
    left, at, right = target.strip().partition("@")
    # `+conv` alone has an empty word in front.
    words = [word.strip() for word in left.removeprefix("+").split("+")]
    blocks = [word.strip() for word in right.split("+")] if at else []
    if not all([*words, *blocks]):
        raise ConfigError(f"{field}: {target!r} is not KINDS, BLOCKS or KINDS@BLOCKS")
    for word in words:
        if not (word in LAYER_KINDS or word == TEXT or _is_block(word) or _is_path(word)):
            _refuse(word, field)
    for word in blocks:
        if not (_is_block(word) or _is_path(word)):
            _refuse(word, field)
    named = [word for word in words if _is_block(word)]
    if named and at:
        raise ConfigError(f"{field}: {target!r} names blocks on both sides of the @")
    if not named:
        return words, blocks
    kinds = [word for word in words if word not in named]
    return ["all-linear", *kinds], named


def _refuse(word: str, field: str) -> None:
    hint = did_you_mean(word, _PRESETS) or f"; presets are {', '.join(_PRESETS)}"
    raise ConfigError(f"{field}: there is no preset {word!r}{hint}")


def _is_block(word: str) -> bool:
    return bool(_BLOCK.fullmatch(word) or _VECTOR.fullmatch(word)) or word in SDXL_BLOCKS


def _is_path(word: str) -> bool:
    """Tell a pattern or a module path from a misspelt preset."""
    return bool(_WILD.search(word)) or "." in word or "_" in word


def _kind_test(word: str) -> Test:
    if word == TEXT:
        return lambda place: place.part != UNET and _is_inner_text(place)
    if word in LAYER_KINDS:
        return lambda place: place.part == UNET and _fits(place.path, LAYER_KINDS[word])
    return _path_test(word)


def _block_test(word: str) -> Test:
    """Return a test for U-Net layers in a block. Text encoders have none of these blocks."""
    if word in SDXL_BLOCKS:
        return lambda place: place.part == UNET and _fits(place.path, SDXL_BLOCKS[word])
    if _VECTOR.fullmatch(word):
        return lambda place: place.block == word
    block = _BLOCK.fullmatch(word)
    if block is None:
        return _path_test(word)
    side, level = block["side"], block["level"]
    start = f"{side}_blocks.{level + '.' if level else ''}" if side else "mid_block."
    return lambda place: place.part == UNET and place.path.startswith(start)


def _path_test(pattern: str) -> Test:
    if not pattern.startswith("text_encoder"):
        own = pattern.removeprefix("unet.")
        return lambda place: place.part == UNET and _fits(place.path, [own])
    # transformers 5 dropped the level text_model from some encoders; both spellings are meant.
    plain = pattern.replace(".text_model.", ".")

    def fits(place: LayerRef) -> bool:
        path = f"{place.part}.{place.path.removeprefix('text_model.')}"
        return place.part != UNET and _is_inner_text(place) and _fits(path, [plain])

    return fits


def _is_inner_text(place: LayerRef) -> bool:
    """Leave out the projection behind SDXL's second encoder: other programs cannot read it."""
    return "encoder.layers." in place.path


def _fits(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a layer or a module above it has a name that fits."""
    return any(fnmatchcase(path, one) or fnmatchcase(path, f"{one}.*") for one in patterns)


def _hint(words: Sequence[str], kinds: Sequence[Test], places: Sequence[LayerRef]) -> str:
    """Say what comes near to words that fit nothing."""
    for word in words:
        near = _near(word, places) if _is_path(word) and not _is_block(word) else []
        if near:
            return f"; did you mean {', '.join(near)}?"
    if any(word in SDXL_BLOCKS for word in words):
        return "; it is about SDXL"
    blocks = {block_label(one) for one in places if any(test(one) for test in kinds)}
    names = sorted(blocks - {""})
    return f"; such layers are in {', '.join(names)}" if names else ""


def block_label(place: LayerRef) -> str:
    """Return the word for the block that a layer is in (``down.1``, ``mid``), or nothing."""
    parts = place.path.split(".")
    if place.part != UNET or parts[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return ""
    side = parts[0].partition("_")[0]
    return side if side == "mid" else f"{side}.{parts[1]}"


def _near(pattern: str, places: Sequence[LayerRef]) -> list[str]:
    """Return module paths, or single names in them, that come near to a pattern without a fit."""
    paths = [p.path if p.part == UNET else f"{p.part}.{p.path}" for p in places]
    if not _WILD.search(pattern):
        return difflib.get_close_matches(pattern, _with_parents(paths), n=3, cutoff=0.8)
    known = {name for path in paths for name in path.split(".")}
    for name in pattern.split("."):
        if not _WILD.search(name) and name not in known:
            return difflib.get_close_matches(name, known, n=3)
    return []


def _with_parents(paths: Iterable[str]) -> list[str]:
    above: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        above |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return list(above)
