"""Settings about data that several commands share."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lorasmith.config.base import BaseConfig, UserPath

Scalar = str | int | float | bool


class RowFilter(BaseConfig):
    """Keep the rows whose metadata column compares true."""

    column: str
    """Name of the metadata column, for instance `aesthetic` or `watermark_probability`."""
    op: Literal["==", "!=", ">=", "<=", "in", "not in", "contains"] = "=="
    """How the column is compared with the value."""
    value: Scalar | tuple[Scalar, ...]
    """What it is compared with; a list for `in` and `not in`."""
    missing: Literal["drop", "keep"] = "drop"
    """What happens to a row that does not have the column."""

    @model_validator(mode="after")
    def _lists_where_needed(self) -> Self:
        if (self.op in ("in", "not in")) != isinstance(self.value, tuple):
            raise ValueError(f"op {self.op!r} does not go with the value {self.value!r}")
        return self


class RowWeight(BaseConfig):
    """How often rows with a certain column value are sampled, relative to all others."""

    column: str
    """Name of the metadata column."""
    value: Scalar
    """The value that this weight is for."""
    weight: float = Field(gt=0.0, le=1.0)
    """1.0 samples such a row every epoch, 0.5 every other epoch on average."""


class PretrainDataConfig(BaseConfig):
    """The captioned training images."""

    path: UserPath
    """A folder of images with captions, or a packed tar."""
    follow_links: bool = False
    """Follow links that lead out of the folder."""
    filters: tuple[RowFilter, ...] = ()
    """Only rows that pass all of these are used."""
    validation_split: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the rows, chosen by a hash of their names, that is never trained on."""
    weights: tuple[RowWeight, ...] = ()
    """Rows that are sampled less often than others."""
    flip_aug: bool = False
    """Mirror half of the images, unless a setting below forbids it."""
    no_flip_words: tuple[str, ...] = ("left", "right", "leftwards", "rightwards")
    """A caption with one of these words is never mirrored."""
    flip_filters: tuple[RowFilter, ...] = ()
    """Only rows that pass all of these are mirrored (text and flags should not be)."""
    image_cache_gib: float = Field(default=4.0, ge=0.0)
    """Decoded images are kept in memory up to this size; larger sets are decoded as needed."""
    max_images: int | None = Field(default=None, gt=0)
    """Use only the first so many rows, to try a recipe out."""
