"""Hash of a network: its weights and its configuration, for cache keys."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

_BOOKKEEPING = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
"""Configuration entries that do not change what the network computes."""


def hash_module(module: nn.Module) -> str:
    """Return a hex SHA-256 over a module's weights, as they are in memory, and its configuration.

    Equal modules have equal hashes wherever they were loaded from and whatever their device;
    another dtype gives another hash.
    """
    state = module.state_dict()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing releases the GIL
        digests = pool.map(_digest, state.values())
        weights = dict(zip(state, digests, strict=True))
    facts = {"kind": type(module).__name__, "config": _public_config(module), "weights": weights}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(content.data)
    return digest.hexdigest()


def _public_config(module: nn.Module) -> dict[str, Any]:
    """Return the configuration without paths, versions and other marks of its origin."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return {}
    items = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in items.items() if not k.startswith("_") and k not in _BOOKKEEPING}
