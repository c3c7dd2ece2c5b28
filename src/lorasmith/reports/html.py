"""What all HTML pages share: the template environment, figures, and writing files."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasmith.core.errors import LorasmithError, LorasmithWarning, OutputError
from lorasmith.core.files import write_text
from lorasmith.core.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Figure:
    """A chart as a page shows it."""

    title: str
    svg: str
    """The ``<svg>`` element, with all text in it escaped."""
    legend: Sequence[tuple[str, str]] = ()
    """Name and style class of each line or bar."""


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lorasmith.reports")
    # Everything is escaped: captions, tags and names come from the user and may be anything.
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = VERSION
    return environment


def render_page(template: str, **values: Any) -> str:
    """Return a page from a template in ``templates/``; ``version`` is always defined."""
    return _environment().get_template(template).render(**values)


def render_fragment(source: str, **values: Any) -> str:
    """Return a part of a page from template text, which may import ``macros.html.j2``."""
    return _environment().from_string(source).render(**values)


def write_output(path: Path, text: str) -> Path:
    """Write a page or a JSON file atomically and return its path.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


@contextmanager
def failure_as_warning(output: str, folder: Path) -> Iterator[None]:
    """Turn an error into a warning while a page is written after training.

    The LoRA is saved by then, so a page that cannot be written must not fail the run.

    Args:
        output: what is written, for the message: ``report``.
        folder: where.
    """
    try:
        yield
    except LorasmithError as error:  # names the file
        warnings.warn(f"no {output}: {error}", LorasmithWarning, stacklevel=3)
    except Exception as error:  # noqa: BLE001 (a page never ends a run)
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"no {output} in {folder}: {reason}", LorasmithWarning, stacklevel=3)
