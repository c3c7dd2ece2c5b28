"""Temporary replacement of a network's modules by subclasses that compute the same faster.

All changes to a network go through ``patched``. A patch that replaces a class of diffusers relies
on how that class works inside, so it is used only with the versions of diffusers that it was tested
with; with others the module runs as it is, and a warning says so.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from lorasmith.core.errors import LorasmithWarning

TESTED_DIFFUSERS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "Attention": ((0, 38), (0, 42)),
    "BasicTransformerBlock": ((0, 38), (0, 42)),
    "FeedForward": ((0, 38), (0, 42)),
    "GEGLU": ((0, 38), (0, 42)),
    "ResnetBlock2D": ((0, 38), (0, 42)),
    "Transformer2DModel": ((0, 38), (0, 42)),
}
"""The first and the last minor version of diffusers that the replacement of a class was tested
with. To add a version, run the tests of ``tests/unit/training/acceleration`` with it."""

_MISSING = object()


@dataclass(frozen=True, eq=False)
class ModulePatch:
    """Replaces the class of some modules by a subclass without parameters of its own."""

    source: type[nn.Module]
    """The class to replace; modules of its subclasses stay."""
    replacement: type[nn.Module]
    """The subclass that takes its place; ``source`` itself if only attributes change."""
    predicate: Callable[[Any], bool] = lambda _: True
    """Says of a module of the class whether the replacement computes the same."""
    attributes: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    """Attributes that the module has while it is patched."""

    def matches(self, module: nn.Module) -> bool:
        return type(module) is self.source and self.predicate(module)

    @property
    def is_tested(self) -> bool:
        """Whether the replacement was tested with the installed version of diffusers."""
        if self.replacement is self.source or not self.source.__module__.startswith("diffusers."):
            return True
        first, last = TESTED_DIFFUSERS[self.source.__name__]
        return first <= _minor_version(diffusers_version()) <= last


def supported_patches(patches: Sequence[ModulePatch]) -> list[ModulePatch]:
    """Return the patches that the installed diffusers was tested with; warn once about others."""
    untested = sorted({patch.source.__name__ for patch in patches if not patch.is_tested})
    if untested:
        _warn_untested(diffusers_version(), tuple(untested))
    return [patch for patch in patches if patch.is_tested]


@contextmanager
def patched(network: nn.Module, patches: Sequence[ModulePatch]) -> Iterator[None]:
    """Apply patches to all modules of a network that they match, for the time of the block."""
    matches = [
        (module, patch)
        for module in network.modules()
        for patch in patches
        if patch.matches(module)
    ]
    undo: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
    try:
        for module, patch in matches:
            attributes = patch.attributes(module)
            previous = {name: vars(module).get(name, _MISSING) for name in attributes}
            undo.append((module, patch.source, previous))
            for name, value in attributes.items():
                setattr(module, name, value)
            module.__class__ = patch.replacement
        yield
    finally:
        for module, source, previous in reversed(undo):
            module.__class__ = source
            for name, value in previous.items():
                if value is not _MISSING:
                    setattr(module, name, value)
                elif name in vars(module):
                    delattr(module, name)


def diffusers_version() -> str:
    import diffusers

    return str(diffusers.__version__)


def _minor_version(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


@cache
def _warn_untested(version: str, classes: tuple[str, ...]) -> None:
    tested = {TESTED_DIFFUSERS[name] for name in classes}
    ranges = ", ".join(f"{a}.{b} to {c}.{d}" for (a, b), (c, d) in sorted(tested))
    warnings.warn(
        f"training is slower than it could be: the fast versions of {', '.join(classes)} were not "
        f"tested with diffusers {version}; install one of {ranges}, or a newer lorasmith",
        LorasmithWarning,
        stacklevel=4,
    )
