"""The base of every settings class: unknown keys are errors, every field has a docstring."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from lorasmith.config.fields import explain_validation_error
from lorasmith.core.errors import ConfigError
from lorasmith.core.registry import Registry
from lorasmith.core.text.path_text import describe_path_problem, expand_user


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
        allow_inf_nan=False,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain_validation_error(type(self), error, "settings")) from None

    # Pydantic calls this only for what is built by a call: a section inside other settings is
    # validated with them, so that the message has its full name.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no number of a setting can be: true, infinity, 10^400."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if _mentions(annotation, (int, float)) and not _mentions(annotation, (bool,)):
            _refuse_bool(value)
        _check_numbers(value, enters_tables=_mentions(annotation, (Any,)))
        return value


def _refuse_bool(value: Any) -> None:
    if isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_is_bool, value))):
        raise ValueError("true and false are no numbers")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _check_numbers(value: Any, enters_tables: bool) -> None:
    """Look at single numbers, lists, and tables of anything; sections are checked as such."""
    if isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item, enters_tables)
    elif isinstance(value, Mapping) and enters_tables:
        for item in value.values():
            _check_numbers(item, enters_tables)
    elif isinstance(value, int) and abs(value) > _LARGEST_INT:
        raise ValueError("a whole number with more than 63 bits")
    elif isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT:
        raise ValueError("a number must be finite, and not beyond 1e30")


def _mentions(annotation: Any, kinds: tuple[Any, ...]) -> bool:
    """Return whether a type is one of some kinds, or a union or list of them."""
    return annotation in kinds or any(_mentions(inner, kinds) for inner in get_args(annotation))


_LARGEST_INT = 2**63 - 1
_LARGEST_FLOAT = 1e30
"""float32 has room above it for what is computed from a setting."""


def _check_count(value: int) -> int:
    if value >= 2**31:
        raise ValueError("more than 31 bits; no count is that large")
    return value


Positive = Annotated[int, Field(gt=0), AfterValidator(_check_count)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Side = Annotated[int, Field(gt=0, le=8192)]
"""A side of an image in pixels."""


def _check_path_text(value: Any) -> Any:
    problem = describe_path_problem(value) if isinstance(value, str) else None
    if problem is not None:
        raise ValueError(problem)
    return value


UserPath = Annotated[Path, BeforeValidator(_check_path_text), AfterValidator(expand_user)]
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
