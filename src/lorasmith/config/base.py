"""The base of every settings class: unknown keys are errors, every field has a docstring."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from lorasmith.config.fields import explain_validation_error
from lorasmith.core.errors import ConfigError
from lorasmith.core.registry import Registry


class BaseConfig(BaseModel):
    """A group of settings. The string under a field is its documentation.

    Raises:
        ConfigError: on construction, where a setting is unknown, missing or out of range.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain_validation_error(type(self), error, "settings")) from None

    # Pydantic calls this only for what is built by a call: a section inside other settings is
    # validated with them, so that the message has its full name.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


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
