"""Settings of earlier versions, read as those of today.

Run folders, checkpoints and settings files of version 1 have other keys and no ``config_version``.
Everything that is written now has ``config_version = 2``.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from lorasmith.core.errors import ConfigError

CONFIG_VERSION = 2
VERSION_KEY = "config_version"

Tree = dict[str, Any]

_DATA = {
    "bad_pictures": "bad_images",
    "bucket_step": "bucket_reso_steps",
    "max_aspect": "max_aspect_ratio",
    "flip": "flip_aug",
    "colour_jitter": "color_jitter",
    "masks": "inpaint_masks",
    "random_masks": "num_random_masks",
    "background": "background_color",
    "shuffle_captions": "shuffle_caption",
    "caption_dropout": "caption_dropout_rate",
    "max_chunks": "max_token_length",
    "repeats": "num_repeats",
    "held_out": "validation_split",
    "class_path": "reg_data_dir",
    "class_caption": "reg_caption",
    "class_weight": "prior_loss_weight",
    # of `lorasmith pretrain`
    "validation_share": "validation_split",
    "flip_words_against": "no_flip_words",
    "memory_gib": "image_cache_gib",
    "limit": "max_images",
}
_OPTIMIZATION = {
    "accumulate": "gradient_accumulation_steps",
    "schedule": "lr_scheduler",
    "warmup": "lr_warmup_steps",
    "floor": "lr_scheduler_min_lr_ratio",
    "clip": "max_grad_norm",
    "ema": "ema_decay",
    "precision": "mixed_precision",
    "log_every": "log_every_n_steps",
    "checkpoint_every": "checkpoint_every_n_steps",
}
_TRAIN = {
    **_OPTIMIZATION,
    "text_learning_rate": "text_encoder_lr",
    "loraplus_ratio": "loraplus_lr_ratio",
    "memory": "vram_limit",
    "save_every": "save_every_n_steps",
    "patience": "early_stopping_patience",
    "loss.min_snr": "loss.min_snr_gamma",
}
_VALIDATION = {
    "every": "every_n_steps",
    "prompts": "prompts",
    "count": "num_images",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "seed": "seed",
    "size": "size",
    "loss_timesteps": "loss_timesteps",
    "loss_seed": "loss_seed",
}
_PRETRAIN_TRAIN = {
    **_OPTIMIZATION,
    "out": "output_dir",
    "graph": "cuda_graph",
    **{
        key: key
        for key in (
            "steps", "batch_size", "learning_rate", "weight_decay", "compile", "seed",
            "keep_checkpoints", "tensorboard", "device", "stop_after_minutes", "start_from",
        )
    },
}  # fmt: skip
_PRETRAIN = {
    "shape.channels": "architecture.block_out_channels",
    "shape.layers": "architecture.layers_per_block",
    "shape.groups": "architecture.norm_num_groups",
    "shape.heads": "architecture.attention_head_dim",
    "shape.latent_channels": "architecture.latent_channels",
    "loss.perceptual": "loss.perceptual_weight",
    "loss.perceptual_tower": "loss.perceptual_encoder",
    "loss.gradient": "loss.gradient_weight",
    "loss.adversarial": "loss.adversarial_weight",
    "loss.adversarial_start": "loss.adversarial_start_step",
    "loss.train": "loss.trainable_part",
    "loss.kl": "loss.kl_weight",
    "loss.codebook": "loss.codebook_size",
    "loss.commitment": "loss.commitment_weight",
    "text.width": "text_encoder.hidden_size",
    "text.layers": "text_encoder.num_hidden_layers",
    "text.heads": "text_encoder.num_attention_heads",
    "text.mlp": "text_encoder.intermediate_size",
    "image.channels": "image_encoder.block_out_channels",
    "image.blocks": "image_encoder.layers_per_block",
    "embedding": "projection_dim",
    "merges": "merges_file",
    "merge_count": "num_merges",
    "shift": "random_shift",
    "colour_jitter": "color_jitter",
    "clip": "text_encoder",
    "prediction": "prediction_type",
    "min_snr": "min_snr_gamma",
    "empty_captions": "caption_dropout_rate",
    "short_captions": "caption_truncation_rate",
    "all_phrasings": "use_all_captions",
}


def _section(old: str, new: str, keys: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{key}": f"{new}.{value}" for key, value in keys.items()}


VERSION_1_KEYS: Mapping[str, str] = {
    **_section("data", "data", _DATA),
    **_section("feature.data", "feature.data", _DATA),
    **_section("train", "train", _TRAIN),
    **_section("preview", "validation", _VALIDATION),
    **_section("loop", "train", _PRETRAIN_TRAIN),
    "lora.parts": "lora.overrides",
    "feature.parts": "feature.overrides",
    "feature.class": "feature.class_word",
    "preserve.every": "preserve.every_n_steps",
    "preserve.cross": "preserve.earlier_features_strength",
    "together": "max_parallel",
    **_PRETRAIN,
}
"""Dotted keys of version 1 with those of today."""


def _precision(value: Any) -> Any:
    return "fp32" if value == "no" else value


def _tokens(chunks: Any) -> Any:
    return 75 * chunks if isinstance(chunks, int) else chunks


VERSION_1_VALUES: Mapping[str, Callable[[Any], Any]] = {
    "train.precision": _precision,
    "loop.precision": _precision,
    "data.max_chunks": _tokens,
    "feature.data.max_chunks": _tokens,
    "data.masks": lambda source: "file" if source == "given" else source,
    "feature.data.masks": lambda source: "file" if source == "given" else source,
}
"""What becomes of values, by the key of version 1."""

REMARKS: Mapping[str, str] = dict.fromkeys(
    ("train.accumulate", "loop.accumulate"),
    ", and it multiplies: train.batch_size is what one process takes at once, so that a batch of 8 "
    "in 2 parts is batch_size 4 with 2 accumulation steps",
)
"""What to say about a key whose meaning changed with its name."""

_VERSION_1_BATCH_SIZE = 8


def upgrade(tree: Mapping[str, Any]) -> tuple[Tree, list[str]]:
    """Return settings of any version as those of today, and the old keys that were in them.

    Args:
        tree: settings from a file or a checkpoint. Those of version 1 are told by their keys.

    Raises:
        ConfigError: they were written by a newer version.
    """
    rest = dict(tree)
    version = rest.pop(VERSION_KEY, 1)
    if not isinstance(version, int) or version > CONFIG_VERSION:
        raise ConfigError(
            f"{VERSION_KEY} is {version!r}, and this lorasmith reads settings up to version "
            f"{CONFIG_VERSION}; use a newer lorasmith"
        )
    if version == CONFIG_VERSION:
        return rest, []
    result: Tree = {}
    old_keys: list[str] = []
    _move(rest, "", "", result, result, old_keys)
    if old_keys:
        _multiply_batches(rest, result)
    return result, old_keys


def new_name(key: str) -> str | None:
    """Return what a dotted key of an earlier version is called now; None where it is none."""
    return VERSION_1_KEYS.get(key)


def _move(
    tree: Mapping[str, Any], prefix: str, base: str, result: Tree, root: Tree, old_keys: list[str]
) -> None:
    """Put the values of a tree into the result, under today's names.

    Args:
        tree: a section.
        prefix: its dotted name, with a dot at its end.
        base: the part of the prefix that ``root`` stands for.
        result: where values go whose keys are not old.
        root: where the renamed ones go, by their full names.
        old_keys: gets the old keys.
    """
    for key, value in tree.items():
        old = prefix + key
        new = VERSION_1_KEYS.get(old)
        if new is not None and not isinstance(value, Mapping):
            if new != old:
                old_keys.append(old)
            convert = VERSION_1_VALUES.get(old)
            _put(root, new.removeprefix(base).split("."), convert(value) if convert else value)
        elif old == "vary" and isinstance(value, Mapping):
            result[key] = _vary(value, old_keys)
        elif isinstance(value, Mapping):
            if _is_section(old):
                _move(value, f"{old}.", base, result.setdefault(key, {}), root, old_keys)
                if not result[key]:
                    del result[key]
            else:
                result[key] = value
        elif old == "feature" and isinstance(value, list | tuple):
            result[key] = [_entry(item, f"{old}.", old_keys) for item in value]
        else:
            result[key] = value


def _is_section(name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in VERSION_1_KEYS)


def _entry(item: Any, prefix: str, old_keys: list[str]) -> Any:
    if not isinstance(item, Mapping):
        return item
    result: Tree = {}
    _move(item, prefix, prefix, result, result, old_keys)
    return result


def _vary(tree: Mapping[str, Any], old_keys: list[str]) -> Tree:
    """Return the varied settings, whose names are keys or nested tables."""
    result: Tree = {}
    for name, values in _leaves(tree, ""):
        new, convert = VERSION_1_KEYS.get(name, name), VERSION_1_VALUES.get(name)
        if new != name:
            old_keys.append(f"vary.{name}")
        is_list = convert is not None and isinstance(values, list)
        result[new] = [convert(value) for value in values] if convert and is_list else values
    return result


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _put(tree: Tree, path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section}: a section, not a value (got {inner!r})")
        tree = inner
    tree[key] = value


def _multiply_batches(before: Mapping[str, Any], result: Tree) -> None:
    """Convert batch sizes: those of version 1 were shared by processes and accumulation steps."""
    old = before.get("loop", before.get("train"))
    if not isinstance(old, Mapping):
        old = {}
    steps = old.get("accumulate", 1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    train = result.setdefault("train", {})
    if not isinstance(steps, int) or steps < 1 or not isinstance(train, dict):
        return  # the check of the settings says so
    shares = steps * processes
    if shares == 1:
        return
    train["batch_size"] = _divided(old.get("batch_size", _VERSION_1_BATCH_SIZE), shares)
    if isinstance(result.get("stages"), list):
        result["stages"] = [_stage(stage, shares) for stage in result["stages"]]


def _stage(stage: Any, shares: int) -> Any:
    if not isinstance(stage, Mapping) or "batch_size" not in stage:
        return stage
    return {**stage, "batch_size": _divided(stage["batch_size"], shares)}


def _divided(batch_size: Any, shares: int) -> Any:
    if not isinstance(batch_size, int):
        return batch_size
    if batch_size % shares:
        raise ConfigError(
            f"batch_size {batch_size} of an earlier version does not divide into {shares} batches; "
            "set train.batch_size, which is what one process takes at once now"
        )
    return batch_size // shares
