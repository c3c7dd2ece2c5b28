"""Which layers a target selects: presets, blocks, PEFT's module names, patterns over module paths.

A target is ``TYPES``, ``BLOCKS`` or ``TYPES@BLOCKS``, each one or more words joined by ``+``:

- a type of layers (`LAYER_KINDS`): ``attention``, ``attention+ff``, ``all-linear+conv``, ``+conv``;
- ``text-encoder``: the text encoders;
- a block: ``down``, ``mid``, ``up``, ``down.1``, ``up.0``, a name of block weights (``IN04``,
  ``MID``, ``OUT05``) or `SDXL_BLOCKS`. Blocks without a type mean ``all-linear`` in them, and types
  joined to blocks are added there: ``up.1+conv`` is ``all-linear+conv@up.1``;
- a module name as in PEFT's ``target_modules``: ``to_k``, ``to_out.0``, ``ff.net.0.proj``,
  ``q_proj``, ``attn2``. It selects every layer whose path is the name or ends with ``.`` and the
  name, and all layers inside of such a module;
- a pattern over module paths (``up_blocks.1.*.attn2.*``; ``*`` also crosses dots), which may stand
  for types or blocks. It selects layers and all layers inside of modules that match. Patterns are
  about the U-Net unless they start with ``text_encoder``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from lorasmith.adapters.naming.layer_names import UNET, LayerRef
from lorasmith.core.errors import ConfigError, close_matches, did_you_mean
from lorasmith.core.text.terminal import shorten

LAYER_KINDS: dict[str, tuple[str, ...]] = {
    "cross-attention": ("*.attn2.to_[qkv]", "*.attn2.to_out.0"),
    "self-attention": ("*.attn1.to_[qkv]", "*.attn1.to_out.0"),
    "attention": ("*.attn[12].to_[qkv]", "*.attn[12].to_out.0"),
    "ff": ("*.ff.net.0.proj", "*.ff.net.2"),
    "all-linear": ("*.attentions.*",),
    "conv": ("*.resnets.*", "*.downsamplers.*", "*.upsamplers.*"),
}
"""Types of U-Net layers, as patterns over module paths.

``all-linear`` is every layer of the transformers, including the 1x1 convolutions around those of SD
1.x; ``conv`` is everything in resnets and samplers.
"""

SDXL_BLOCKS: dict[str, tuple[str, ...]] = {
    "b-lora": ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1"),
    "b-lora-content": ("up_blocks.0.attentions.0",),
    "b-lora-style": ("up_blocks.0.attentions.1",),
}
"""The two transformers of SDXL that carry content and style (B-LoRA, arXiv:2403.14572)."""

TEXT = "text-encoder"
_PRESETS = (*LAYER_KINDS, "attention+ff", "+conv", TEXT, "down", "mid", "up", *SDXL_BLOCKS)
_MODULE_NAMES = ("attn1", "attn2", "conv1", "conv2", "fc1", "fc2", "mlp")
"""PEFT's module names that have neither a dot nor an underscore."""
_JOINT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Layers in PEFT's target lists for SD 3 and Flux."""
_BLOCK = re.compile(r"(?P<side>down|up)(\.(?P<level>\d+))?|mid")
_LBW_BLOCK = re.compile(r"(IN|OUT)\d\d|MID")
_LONGEST_TARGET = 500
"""Longer targets are refused: each word is compared with every layer."""
_WILDCARD = re.compile(r"[*?\[]")

Predicate = Callable[[LayerRef], bool]


def match_target(target: str, refs: Sequence[LayerRef], field: str) -> list[LayerRef]:
    """Return the layers that one target selects, in the order of ``refs``.

    Args:
        target: see the module's description.
        refs: every layer of the model.
        field: the setting that holds the target, for messages.

    Raises:
        ConfigError: a word is unknown, or no layer matches; the message suggests close names.
    """
    types, blocks = _parse(target, field)
    type_tests = [_type_test(word) for word in types]
    block_tests = [_block_test(word) for word in blocks]
    matches = [
        ref
        for ref in refs
        if any(test(ref) for test in type_tests)
        and (not block_tests or any(test(ref) for test in block_tests))
    ]
    if not matches:
        hint = _hint([*types, *blocks], type_tests, refs)
        raise ConfigError(f"{field}: {target!r} fits no layer of this model{hint}")
    return matches


def _parse(target: str, field: str) -> tuple[list[str], list[str]]:
    """Return the words for types (or patterns) and those for blocks."""
    left, at, right = target.strip().partition("@")
    if len(target) > _LONGEST_TARGET:
        raise ConfigError(
            f"{field}: {shorten(repr(target), 60)} has {len(target):,} characters; "
            f"{_LONGEST_TARGET:,} are the most"
        )
    # `+conv` alone has an empty word in front.
    words = [word.strip() for word in left.removeprefix("+").split("+")]
    blocks = [word.strip() for word in right.split("+")] if at else []
    if not all([*words, *blocks]):
        raise ConfigError(f"{field}: {target!r} is not TYPES, BLOCKS or TYPES@BLOCKS")
    for word in words:
        if not (word in LAYER_KINDS or word == TEXT or _is_block(word) or _is_path(word)):
            raise _unknown_preset(word, field)
    for word in blocks:
        if not (_is_block(word) or _is_path(word)):
            raise _unknown_preset(word, field)
    left_blocks = [word for word in words if _is_block(word)]
    if left_blocks and at:
        raise ConfigError(f"{field}: {target!r} names blocks on both sides of the @")
    if not left_blocks:
        return words, blocks
    return ["all-linear", *(word for word in words if word not in left_blocks)], left_blocks


def _unknown_preset(word: str, field: str) -> ConfigError:
    hint = did_you_mean(word, _PRESETS) or f"; presets are {', '.join(_PRESETS)}"
    return ConfigError(f"{field}: there is no preset {word!r}{hint}")


def _is_block(word: str) -> bool:
    return bool(_BLOCK.fullmatch(word) or _LBW_BLOCK.fullmatch(word)) or word in SDXL_BLOCKS


def _is_path(word: str) -> bool:
    """Return whether a word is a pattern or a module name, not a misspelt preset."""
    return bool(_WILDCARD.search(word)) or "." in word or "_" in word or word in _MODULE_NAMES


def _type_test(word: str) -> Predicate:
    if word == TEXT:
        return _is_text_layer
    if word in LAYER_KINDS:
        return lambda ref: ref.part == UNET and _matches(ref.path, LAYER_KINDS[word])
    return _path_test(word)


def _block_test(word: str) -> Predicate:
    """Return a test for U-Net layers in a block. Text encoders have none of these blocks."""
    if word in SDXL_BLOCKS:
        return lambda ref: ref.part == UNET and _matches(ref.path, SDXL_BLOCKS[word])
    if _LBW_BLOCK.fullmatch(word):
        return lambda ref: ref.block == word
    block = _BLOCK.fullmatch(word)
    if block is None:
        return _path_test(word)
    side, level = block["side"], block["level"]
    prefix = f"{side}_blocks.{level + '.' if level else ''}" if side else "mid_block."
    return lambda ref: ref.part == UNET and ref.path.startswith(prefix)


def _path_test(word: str) -> Predicate:
    if word.startswith("text_encoder"):
        return _text_path_test(word)
    path = word.removeprefix("unet.")
    if _WILDCARD.search(word) or path != word:
        return lambda ref: ref.part == UNET and _matches(ref.path, [path])
    name = word.removeprefix("text_model.")
    return lambda ref: f".{name}." in f".{ref.path}." and (ref.part == UNET or _is_text_layer(ref))


def _text_path_test(pattern: str) -> Predicate:
    # transformers 5 has no level text_model in some encoders; both ways of writing are accepted.
    plain = pattern.replace(".text_model.", ".")

    def test(ref: LayerRef) -> bool:
        path = f"{ref.part}.{ref.path.removeprefix('text_model.')}"
        return _is_text_layer(ref) and _matches(path, [plain])

    return test


def _is_text_layer(ref: LayerRef) -> bool:
    """Exclude the projection after SDXL's second encoder: other programs cannot read it."""
    return ref.part != UNET and "encoder.layers." in ref.path


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a layer's path or that of a module around it matches."""
    return any(
        fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*") for pattern in patterns
    )


def _hint(words: Sequence[str], type_tests: Sequence[Predicate], refs: Sequence[LayerRef]) -> str:
    """Return what may have been meant by words that match nothing."""
    for word in words:
        if word in _JOINT_ATTENTION:
            return f"; only SD 3 and Flux have {word}: leave it out"
        if word.startswith(".*"):
            return f"; in patterns * alone stands for any text: {word.removeprefix('.')}"
        close = _close_names(word, refs) if _is_path(word) and not _is_block(word) else []
        if close:
            return f"; did you mean {', '.join(close)}?"
    if any(word in SDXL_BLOCKS for word in words):
        return "; it is about SDXL"
    blocks = {block_label(ref) for ref in refs if any(test(ref) for test in type_tests)}
    labels = sorted(blocks - {""})
    return f"; such layers are in {', '.join(labels)}" if labels else ""


def block_label(ref: LayerRef) -> str:
    """Return the word for the block of a layer (``down.1``, ``mid``); empty outside of blocks."""
    names = ref.path.split(".")
    if ref.part != UNET or names[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return ""
    side = names[0].partition("_")[0]
    return side if side == "mid" else f"{side}.{names[1]}"


def _close_names(pattern: str, refs: Sequence[LayerRef]) -> list[str]:
    """Return module paths, or single names in them, that are close to a pattern."""
    paths = [ref.path if ref.part == UNET else f"{ref.part}.{ref.path}" for ref in refs]
    known = {name for path in paths for name in path.split(".")}
    if not _WILDCARD.search(pattern) and "." in pattern:
        return close_matches(pattern, _with_parents(paths), cutoff=0.8)
    for name in pattern.split("."):
        if not _WILDCARD.search(name) and name not in known:
            return close_matches(name, known)
    return []


def _with_parents(paths: Iterable[str]) -> list[str]:
    """Return the paths of layers and of all modules around them."""
    parents: dict[str, None] = {}
    for path in paths:
        names = path.split(".")
        parents |= dict.fromkeys(".".join(names[:end]) for end in range(1, len(names) + 1))
    return list(parents)
