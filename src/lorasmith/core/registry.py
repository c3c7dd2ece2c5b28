"""Registries: named implementations of one kind, built in or added by other packages."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lorasmith.core.errors import ConfigError, LorasmithWarning, close_matches

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Implementations by name.

    Built-in items are given as ``"package.module:attribute"`` and imported on first use, so that
    names can be checked without importing torch. Another package adds items with ``register``, or
    with an entry point in the group ``lorasmith.<plural>`` whose name is the item's name.
    """

    def __init__(self, kind: str, plural: str, builtin: Mapping[str, str] | None = None) -> None:
        """Create a registry.

        Args:
            kind: what an item is, for messages: ``sampler``.
            plural: the entry point group behind ``lorasmith.``: ``samplers``.
            builtin: the references of the built-in items, in the order of the documentation.
        """
        self.kind = kind
        self.group = f"lorasmith.{plural}"
        self._references: dict[str, Any] = dict(builtin or {})
        self._items: dict[str, Item] = {}
        self._entry_points_are_read = False

    def register(self, name: str, item: Item | None = None) -> Any:
        """Add an item, directly or as a decorator.

        Raises:
            ConfigError: the name is taken.
        """
        if item is None:
            return self._decorator(name)
        if name in self:
            raise ConfigError(
                f"the {self.kind} {name!r} is registered already; choose another name"
            )
        self._items[name] = item
        return item

    def _decorator(self, name: str) -> Callable[[Item], Item]:
        def decorate(item: Item) -> Item:
            self.register(name, item)
            return item

        return decorate

    def unregister(self, name: str) -> None:
        """Remove an item that was added with ``register``.

        Raises:
            KeyError: no such item was added.
        """
        del self._items[name]

    def get(self, name: str) -> Item:
        """Return an item.

        Raises:
            ConfigError: there is none of this name (close names are suggested), or the package
                that it is from is broken; the message names the package.
        """
        name = self.check(name)
        if name not in self._items:
            self._items[name] = self._load(self._references[name])
        return self._items[name]

    def check(self, name: str) -> str:
        """Return a name as it is registered; upper and lower case do not matter.

        Raises:
            ConfigError: it is not registered; close names are suggested.
        """
        by_folded_name = {known.casefold(): known for known in self.names()}
        known = by_folded_name.get(name.casefold())
        if known is not None:
            return known
        close = close_matches(name.casefold(), by_folded_name, limit=1)
        close = [by_folded_name[folded] for folded in close]
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"there is no {self.kind} {name!r}{hint} (choose from {', '.join(self.names())})"
        )

    def names(self) -> tuple[str, ...]:
        """Return all names: the built-in ones first, then what was added."""
        self._read_entry_points()
        return tuple(dict.fromkeys((*self._references, *self._items)))

    def load_all(self) -> dict[str, Item]:
        """Return all items by name; this imports every one.

        Raises:
            ConfigError: a package that an item is from is broken; the message names it.
        """
        return {name: self.get(name) for name in self.names()}

    def __contains__(self, name: str) -> bool:
        return name.casefold() in {known.casefold() for known in self.names()}

    def _load(self, reference: Any) -> Item:
        if isinstance(reference, EntryPoint):
            return self._load_entry_point(reference)
        module, _, attribute = reference.partition(":")
        item: Item = getattr(import_module(module), attribute)
        return item

    def _load_entry_point(self, entry: EntryPoint) -> Item:
        try:
            item: Item = entry.load()
        except Exception as error:  # importing another package can raise anything
            detail = (str(error).strip() or "no message").splitlines()[0]
            raise ConfigError(
                f"the {self.kind} {entry.name!r} of the {_package(entry)} cannot be loaded from "
                f"{entry.value}: {type(error).__name__}: {detail}; update or uninstall that package"
            ) from error
        return item

    def _read_entry_points(self) -> None:
        if self._entry_points_are_read:
            return
        self._entry_points_are_read = True
        for entry in entry_points(group=self.group):
            if entry.name in self:
                warnings.warn(
                    f"the {self.kind} {entry.name!r} of the {_package(entry)} is not used: the "
                    "name is taken",
                    LorasmithWarning,
                    stacklevel=2,
                )
            else:
                self._references[entry.name] = entry


def _package(entry: EntryPoint) -> str:
    """Return the package that an entry point belongs to, for messages."""
    if entry.dist is not None:
        return f"package {entry.dist.name} {entry.dist.version}"
    return f"package with the module {entry.module}"
