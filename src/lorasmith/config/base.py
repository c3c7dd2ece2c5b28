"""The base of every settings class: unknown keys are errors, every field has a docstring."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of settings. The string under a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path in which ``~`` is the user's home folder."""


def described_fields(settings: type[Settings], prefix: str = "") -> list[tuple[str, Any, str]]:
    """List ``(dotted name, default, docstring)`` of every field, sections opened.

    Documentation and tests are generated from this, so that neither can drift from the code.
    """
    rows: list[tuple[str, Any, str]] = []
    for own, field in settings.model_fields.items():
        name, annotation = field.alias or own, field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            rows += described_fields(annotation, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((prefix + name, default, (field.description or "").strip()))
    return rows
