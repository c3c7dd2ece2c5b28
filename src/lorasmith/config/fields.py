"""Fields of settings classes by their dotted names, and what is wrong with one, in a line."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lorasmith.core.errors import did_you_mean
from lorasmith.core.text.terminal import shorten

_LONGEST_VALUE = 200
"""Longer values and names are shortened in messages."""


def list_fields(settings: type[BaseModel], prefix: str = "") -> list[tuple[str, Any, str]]:
    """List ``(dotted name, default, docstring)`` of every field, sections opened.

    Documentation and tests are generated from this, so that neither can drift from the code.
    """
    rows: list[tuple[str, Any, str]] = []
    for field_name, field in settings.model_fields.items():
        name, annotation = field.alias or field_name, field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += list_fields(annotation, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((prefix + name, default, (field.description or "").strip()))
    return rows


def explain_validation_error(kind: type[BaseModel], error: ValidationError, where: str) -> str:
    """Return one problem in a line, with its place, and how many more there are.

    An unknown key comes first: a misspelt name is also a missing one.

    Args:
        kind: the settings class.
        error: what pydantic found.
        where: where the settings come from.
    """
    problems = error.errors(include_url=False)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    problem = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    return f"{where}: {_explain_problem(kind, problem)}{more}"


def _explain_problem(kind: type[BaseModel], problem: ErrorDetails) -> str:
    path = [str(part) for part in problem["loc"]]
    dotted = shorten(".".join(path), _LONGEST_VALUE)
    if problem["type"] == "extra_forbidden":
        section = ".".join(path[:-1])
        known = _fields_at(kind, path[:-1])
        inside = f"section [{section}]" if section else "the top level"
        hint = did_you_mean(path[-1], known) or _other_section(kind, path[-1])
        return f"unknown key {_show(path[-1])} in {inside}{hint}"
    if problem["type"] == "missing":
        inner = _required_in(kind, path)
        return f"{', '.join(inner)} are required" if len(inner) > 1 else f"{inner[0]} is required"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    label, given = f"{dotted}: " if dotted else "", problem.get("input")
    if isinstance(given, Mapping):  # settings that do not go together: the message names them
        return f"{label}{message}"
    shown = _show(given)
    if isinstance(given, str) and shown in message:
        return f"{label}{message}"
    return f"{label}{message} (got {shown})"


def _required_in(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """List the required fields of a missing section by their dotted names, or the missing field."""
    dotted = shorten(".".join(path), _LONGEST_VALUE)
    section = next((field for name, field in kind.model_fields.items() if path == [name]), None)
    inside = _section_class(section.annotation) if section is not None else None
    if inside is None:
        return [dotted]
    return [
        f"{dotted}.{field.alias or name}"
        for name, field in inside.model_fields.items()
        if field.is_required()
    ] or [dotted]


def _show(value: Any) -> str:
    """Return a value for a message, shortened."""
    try:
        return shorten(repr(value), _LONGEST_VALUE)
    except ValueError:  # Python writes no numbers of more than 4,300 digits
        return "a number of thousands of digits"


def _other_section(kind: type[BaseModel], key: str) -> str:
    """Say where a key is that stands in the wrong section."""
    keys = [name for name, _, _ in list_fields(kind) if name.rpartition(".")[2] == key]
    return f"; did you mean {', '.join(keys)}?" if keys else ""


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = kind
    for part in path:
        if part.isdigit():  # an index into a list of sections
            continue
        current = _section_class(current.model_fields[part].annotation)
    return [field.alias or name for name, field in current.model_fields.items()]


def _section_class(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        section = _section_class(inner)
        if section is not None:
            return section
    return None
