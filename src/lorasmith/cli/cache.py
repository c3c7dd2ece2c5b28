"""``lorasmith cache``: what training keeps on disk for the next run, and removing it."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lorasmith.cli.options.common import AsJson
from lorasmith.cli.output import print_json, print_line
from lorasmith.core.errors import ConfigError
from lorasmith.core.text.console import open_console

if TYPE_CHECKING:
    from lorasmith.data.cache.cleanup import Shard

_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE = re.compile(r"(\d{1,6})([hdw])")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("cache")(cache)


def cache(
    prune: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove what was not used for so long: 12h, 30d, 8w."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Another cache, the `data.cache_dir` of runs.",
            show_default="$LORASMITH_CACHE, else the user's cache folder",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what training keeps for the next run (latents, text embeddings), or remove it.

    Whatever is removed is computed again when it is needed. Nothing but the cache's own files is
    touched, and nothing outside its folder.

    Example: `lorasmith cache --prune 30d`
    """
    from lorasmith.data.cache.cleanup import count_other_bytes, list_shards, remove_unused_shards
    from lorasmith.data.cache.tensor_cache import default_cache_dir

    if clear and prune is not None:
        raise ConfigError("--clear removes all that --prune would; drop one of them")
    age = 0.0 if clear else None if prune is None else _seconds(prune)
    root = (folder or default_cache_dir()).expanduser()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root}: not a folder; --dir names the folder of a cache")
    removed = [] if age is None else remove_unused_shards(root, age)
    left = list_shards(root)
    beside = count_other_bytes(root, left)
    if as_json:
        print_json(_tree(root, left, removed, beside))
        return
    if age is not None:
        print_line(f"removed {_counted(removed)}")
    _show(root, left, beside)


def _seconds(age: str) -> float:
    """Return an age in seconds.

    Raises:
        ConfigError: it is not written like 30d.
    """
    match = _AGE.fullmatch(age)
    if match is None or not int(match[1]):
        raise ConfigError(f"--prune {age}: write an age in hours, days or weeks: 12h, 30d, 8w")
    return int(match[1]) * _UNITS[match[2]]


def _show(root: Path, shards: "list[Shard]", beside: int) -> None:
    if shards:
        table = Table(title=str(root), title_justify="left")
        table.add_column("what")
        for column in ("networks", "entries", "MiB", "unused for"):
            table.add_column(column, justify="right")
        for kind in sorted({shard.kind for shard in shards}):
            of_kind = [shard for shard in shards if shard.kind == kind]
            table.add_row(
                kind, str(len({shard.path.parent for shard in of_kind})),
                str(sum(shard.entry_count for shard in of_kind)), _mebibytes(of_kind),
                f"{min(map(_age_of, of_kind)):.0f} to {max(map(_age_of, of_kind)):.0f} days",
            )  # fmt: skip
        open_console().print(table)
    print_line(f"{root}: {_counted(shards)}")
    if beside:
        print_line(f"{beside / 2**20:.1f} MiB of other files there are left alone")


def _tree(root: Path, left: "list[Shard]", removed: "list[Shard]", beside: int) -> dict[str, Any]:
    """Return everything as values that JSON can hold."""

    def totals(shards: "list[Shard]") -> dict[str, int]:
        return {
            "files": len(shards),
            "entries": sum(shard.entry_count for shard in shards),
            "bytes": sum(shard.size for shard in shards),
        }

    kinds = sorted({shard.kind for shard in left})
    return {
        "folder": str(root),
        **totals(left),
        "kinds": {kind: totals([shard for shard in left if shard.kind == kind]) for kind in kinds},
        "removed": totals(removed),
        "other_bytes": beside,
    }


def _counted(shards: "list[Shard]") -> str:
    entries = sum(shard.entry_count for shard in shards)
    return f"{entries} {'entry' if entries == 1 else 'entries'}, {_mebibytes(shards)} MiB"


def _mebibytes(shards: "list[Shard]") -> str:
    return f"{sum(shard.size for shard in shards) / 2**20:.1f}"


def _age_of(shard: "Shard") -> float:
    """Return for how many days it was not used."""
    return max(0.0, time.time() - shard.last_used) / _UNITS["d"]
