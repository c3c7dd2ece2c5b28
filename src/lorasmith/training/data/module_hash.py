"""What a network is, as a key: its weights and its configuration."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

_BOOKKEEPING = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
"""Entries of a configuration that say nothing about what the network computes."""


def hash_module(network: nn.Module) -> str:
    """Return a hex SHA-256 over a network's weights, as they are in memory, and its configuration.

    Equal networks give equal hashes wherever they were loaded from and whatever device they
    are on; another number format gives another one.
    """
    state = network.state_dict()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing lets go of the GIL
        digests = pool.map(_digest, state.values())
        weights = dict(zip(state, digests, strict=True))
    told = {"kind": type(network).__name__, "config": _config(network), "weights": weights}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(content.data)
    return digest.hexdigest()


def _config(network: nn.Module) -> dict[str, Any]:
    """Return the configuration without paths, versions and other marks of where it came from."""
    config: Any = getattr(network, "config", None)
    if config is None:
        return {}
    items = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in items.items() if not k.startswith("_") and k not in _BOOKKEEPING}
