"""The sources of the dataset: the pinned packages and the styles in `sources.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES_FILE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class Package:
    """One npm package at one version, with the checksums its tarball must have."""

    name: str
    version: str
    sha512: str
    """Base64, as npm's `integrity` field gives it."""
    sha1: str
    """Hexadecimal, as npm's `shasum` field gives it."""
    keep: tuple[str, ...]
    """Glob patterns of the members worth unpacking (the rest is often ten times as large)."""

    @property
    def folder_name(self) -> str:
        """Name of the folder the package unpacks to."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"

    @property
    def tarball_name(self) -> str:
        """File name that `npm pack` gives the tarball."""
        return f"{self.folder_name}.tgz"


@dataclass(frozen=True)
class Style:
    """One set of images in one style, with the words that describe the style."""

    id: str
    package: str
    phrase: str
    description: str
    licence: str
    licensor: str
    monochrome: bool = False
    """Black and white pictures: words for colours are kept out of their captions."""
    numbered_variants: bool = False
    """Icon names end in -1, -2, ...: several different drawings of one thing are all kept."""
    unicode: bool = True
    """Whether icons stand for Unicode emoji at all; if not, captions come from icon names."""
    codepoints_of: str = ""
    """Another style whose icon name to codepoint table is used first."""
    only_emoji_of: str = ""
    """Keep only the emoji that this other style also has."""
    also_emoji: tuple[str, ...] = ()
    """Codepoints exempt from `only_emoji_of`."""


@dataclass(frozen=True)
class Sources:
    """Everything in `sources.toml`."""

    packages: tuple[Package, ...]
    styles: tuple[Style, ...]

    def style(self, style_id: str) -> Style:
        """Return the style called `style_id`."""
        return next(style for style in self.styles if style.id == style_id)

    def package(self, name: str) -> Package:
        """Return the package called `name`."""
        return next(package for package in self.packages if package.name == name)


def load_sources(path: Path = SOURCES_FILE) -> Sources:
    """Read the packages and styles from a TOML file."""
    with path.open("rb") as file:
        table = tomllib.load(file)
    return Sources(
        packages=tuple(Package(**_with_tuples(entry)) for entry in table["package"]),
        styles=tuple(Style(**_with_tuples(entry)) for entry in table["style"]),
    )


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
