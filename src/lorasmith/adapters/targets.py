"""Which layers of a U-Net get an adapter: presets, as patterns over module paths."""

from fnmatch import fnmatchcase

from torch import nn

from lorasmith.adapters.names import layers_of
from lorasmith.core.errors import ConfigError, did_you_mean

PRESETS: dict[str, tuple[str, ...]] = {
    "attention": ("*.attn[12].to_[qkv]", "*.attn[12].to_out.0"),
}
"""Shell-style patterns over module paths (``*`` also crosses dots); one that fits is enough."""


def select(root: nn.Module, targets: str) -> dict[str, nn.Module]:
    """Return the layers of a network that a preset names, by module path, in the network's order.

    Raises:
        ConfigError: no such preset (close matches are named), or it fits no layer.
    """
    if targets not in PRESETS:
        hint = did_you_mean(targets, PRESETS) or f"; use {', '.join(PRESETS)}"
        raise ConfigError(f"lora.targets: there is no preset {targets!r}{hint}")
    chosen = {
        path: layer
        for path, layer in layers_of(root).items()
        if any(fnmatchcase(path, pattern) for pattern in PRESETS[targets])
    }
    if not chosen:
        raise ConfigError(f"lora.targets: {targets!r} fits no layer of this U-Net")
    return chosen
