"""What is read from the configs of networks: known keys, with values in known bounds.

A config comes with the weights, from anybody. Nothing of it reaches a constructor of diffusers or
transformers but the keys listed here: others could name code to import or to fetch
(``auto_map``, ``attn_implementation``, ``quantization_config``). Sizes are bounded before anything
is built from them.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from lorasmith.core.errors import LorasmithWarning, WeightsError

logger = logging.getLogger(__name__)

_UNET = frozenset({
    "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos",
    "freq_shift", "down_block_types", "mid_block_type", "up_block_types", "only_cross_attention",
    "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor",
    "dropout", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
    "transformer_layers_per_block", "reverse_transformer_layers_per_block", "encoder_hid_dim",
    "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "dual_cross_attention",
    "use_linear_projection", "class_embed_type", "addition_embed_type", "addition_time_embed_dim",
    "num_class_embeds", "upcast_attention", "resnet_time_scale_shift", "resnet_skip_time_act",
    "resnet_out_scale_factor", "time_embedding_type", "time_embedding_dim",
    "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim", "conv_in_kernel",
    "conv_out_kernel", "projection_class_embeddings_input_dim", "attention_type",
    "class_embeddings_concat", "mid_block_only_cross_attention", "cross_attention_norm",
    "addition_embed_type_num_heads",
})  # fmt: skip
_VAE = frozenset({
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "act_fn", "latent_channels", "norm_num_groups", "sample_size",
    "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
    "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
})  # fmt: skip
_TRANSFORMER = frozenset({
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "hidden_act", "layer_norm_eps", "attention_dropout",
    "initializer_range", "initializer_factor",
})  # fmt: skip
_TEXT = _TRANSFORMER | {
    *("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
}
_VISION = _TRANSFORMER | {"num_channels", "image_size", "patch_size"}
_CLIP = frozenset({"projection_dim", "logit_scale_init_value", "initializer_factor"})

KNOWN_KEYS: Mapping[str, frozenset[str]] = {
    "UNet2DConditionModel": _UNET,
    "AutoencoderKL": _VAE,
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": _TEXT,
    "CLIPModel": _CLIP,
    "StableDiffusionSafetyChecker": _CLIP,
    "text_config": _TEXT,
    "vision_config": _VISION,
}
"""The keys that are read, by the class of the network or the part of CLIP's config."""
_NESTED = ("text_config", "vision_config")

_LABELS = frozenset({
    "_class_name", "_diffusers_version", "_name_or_path", "architectures", "model_type",
    "torch_dtype", "dtype", "transformers_version", "_commit_hash",
})  # fmt: skip
"""Keys that say where a config comes from."""
_CODE = (
    "auto_map",
    "attn_implementation",
    "trust_remote_code",
    "quantization",
    "custom_",
    "kernel",
)
"""Parts of the names of keys that could name code."""

_MAX_NUMBER = 2**16
_LIMITS: Mapping[str, int] = {
    "block_out_channels": 4096,
    "hidden_size": 8192,
    "vocab_size": 2**18,
    "bos_token_id": 2**20,
    "eos_token_id": 2**20,
    "pad_token_id": 2**20,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 64,
    "layers_per_block": 8,
    "transformer_layers_per_block": 64,
    "reverse_transformer_layers_per_block": 64,
    "conv_in_kernel": 15,
    "conv_out_kernel": 15,
    "image_size": 4096,
    "patch_size": 4096,
}
"""The largest whole numbers; ViT-bigG has 32 layers of width 1280, SDXL at most 10 in a block."""
_POSITIVE = ("block_out_channels", "hidden_size", "num_hidden_layers", "vocab_size",
             "num_attention_heads", "attention_head_dim", "norm_num_groups", "layers_per_block",
             "max_position_embeddings", "patch_size", "image_size", "sample_size")  # fmt: skip
_SINGLE = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers",
           "vocab_size", "max_position_embeddings", "latent_channels")  # fmt: skip
"""Entries that are read as one number."""
_MAX_LEVELS = 8
_MAX_TEXT = 100
_MAX_BLOCKS = 500
"""Transformer layers of a U-Net, at most; SDXL has 70."""
MAX_PARAMETERS = 10**10
"""Networks with more are refused before their weights are read; SDXL's U-Net has 2.6 * 10^9."""
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "relu",
                "mish")  # fmt: skip


def known_config(class_name: str, config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return what a network of a class is built from: the known keys of its config.

    Args:
        class_name: a key of `KNOWN_KEYS`.
        config: the whole config.
        file: its name, for messages.

    Raises:
        WeightsError: a value is of the wrong kind, not finite, or beyond what any model has.
    """
    known = {key: config[key] for key in KNOWN_KEYS[class_name] if key in config}
    _report_unknown(class_name, config, file)
    for key, value in known.items():
        _check_value(key, value, file)
    _check_blocks(known, file)
    if KNOWN_KEYS[class_name] is _CLIP:
        for part in _NESTED:
            known[part] = known_config(part, _nested(config, part, file), f"{part} of {file}")
    return known


def select_known(class_name: str, config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the known keys of a config (see `known_config`), and those that say where it is from.

    Raises:
        WeightsError: see `known_config`.
    """
    labels = {key: config[key] for key in _LABELS if _is_label(config.get(key))}
    return labels | known_config(class_name, config, file)


def _is_label(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and len(name) <= _MAX_TEXT for name in names)


def _nested(config: Mapping[str, Any], part: str, file: str) -> dict[str, Any]:
    """Return a part of CLIP's config; early ones say some of it in ``*_config_dict``."""
    values = [config.get(key) or {} for key in (part, f"{part}_dict")]
    if not all(isinstance(value, dict) for value in values):
        raise WeightsError(f"{file} does not fit: its {part} is not an object")
    return {**values[0], **values[1]}


def _report_unknown(class_name: str, config: Mapping[str, Any], file: str) -> None:
    """Name the keys that are left out; those that could name code in a warning."""
    nested = (*_NESTED, "text_config_dict", "vision_config_dict")
    left_out = sorted(set(config) - KNOWN_KEYS[class_name] - _LABELS - set(nested))
    code = [key for key in left_out if any(mark in key for mark in _CODE) and config[key]]
    if code:
        warnings.warn(
            f"{file}: not used, as it could name code: {_shorten(', '.join(code))}",
            LorasmithWarning,
            stacklevel=4,
        )
    if left_out:
        logger.debug("%s: keys that are not used: %s", file, _shorten(", ".join(left_out)))


def _check_value(key: str, value: Any, file: str) -> None:
    if key in _SINGLE and not isinstance(value, int):
        raise WeightsError(f"{file} does not fit: {key} must be one whole number")
    values = list(_flatten(value))
    if isinstance(value, list | tuple) and len(values) > _MAX_LEVELS * _MAX_LEVELS:
        raise WeightsError(f"{file} does not fit: {key} has {len(values):,} entries")
    for item in values:
        reason = _describe_misfit(key, item)
        if reason:
            shown = _shorten(repr(item)) if not isinstance(item, dict) else "an object"
            raise WeightsError(f"{file} does not fit: {key} is {shown}; {reason}")


def _flatten(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the entries of a list, and of lists in it, up to a depth."""
    if isinstance(value, list | tuple) and depth < 3:
        for item in value:
            yield from _flatten(item, depth + 1)
    else:
        yield value


def _describe_misfit(key: str, item: Any) -> str:
    """Return why a value cannot be, or an empty string."""
    if item is None or isinstance(item, bool):
        return ""
    if isinstance(item, str):
        if key == "hidden_act" and item not in _ACTIVATIONS:
            return f"known are {', '.join(_ACTIVATIONS)}"
        return "" if len(item) <= _MAX_TEXT else "that is no setting of a network"
    if isinstance(item, int):
        low, high = int(key in _POSITIVE), _LIMITS.get(key, _MAX_NUMBER)
        return "" if low <= item <= high else f"it must be {low:,} to {high:,}"
    if isinstance(item, float):
        is_possible = math.isfinite(item) and abs(item) <= _MAX_NUMBER
        return "" if is_possible else "that is no setting of a network"
    return "it must be a number, a text or a list of them"


def _check_blocks(known: Mapping[str, Any], file: str) -> None:
    """Refuse a U-Net or an autoencoder of more layers than any has, before they are built."""
    channels = known.get("block_out_channels", ())
    levels = len(channels) if isinstance(channels, list | tuple) else 1
    if levels > _MAX_LEVELS:
        raise WeightsError(f"{file} does not fit: block_out_channels has {levels:,} levels")
    layers, depth = (
        max((item for item in _flatten(known.get(key)) if isinstance(item, int)), default=1)
        for key in ("layers_per_block", "transformer_layers_per_block")
    )
    blocks = 2 * levels * (layers + 1) * depth
    if blocks > _MAX_BLOCKS:
        raise WeightsError(
            f"{file} does not fit: it says up to {blocks:,} transformer layers; at most "
            f"{_MAX_BLOCKS} are read"
        )


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
