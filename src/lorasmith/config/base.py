"""The base of every settings class: unknown keys are errors, every field has a docstring."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from lorasmith.core.errors import ConfigError
from lorasmith.core.registry import Registry


class BaseConfig(BaseModel):
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


class RegisteredName:
    """The annotation of a setting that names an item of a registry.

    ``optimizer: Annotated[str, RegisteredName(OPTIMIZERS)]`` accepts what is built in and what
    other packages registered; the settings page lists the names.
    """

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        try:
            return self.registry.check(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None


def list_fields(settings: type[BaseConfig], prefix: str = "") -> list[tuple[str, Any, str]]:
    """List ``(dotted name, default, docstring)`` of every field, sections opened.

    Documentation and tests are generated from this, so that neither can drift from the code.
    """
    rows: list[tuple[str, Any, str]] = []
    for own, field in settings.model_fields.items():
        name, annotation = field.alias or own, field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseConfig):
            rows += list_fields(annotation, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((prefix + name, default, (field.description or "").strip()))
    return rows
