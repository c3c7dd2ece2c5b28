"""Rows of images in a page, embedded as data URIs."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.runs.run_folder import Preview, image_data_uri, read_prompt


@dataclass(frozen=True)
class EmbeddedRow:
    """Images side by side, with a label at the left."""

    label: str
    images: tuple[str, ...]
    """Data URIs."""


def embed_preview(label: str, preview: Preview) -> EmbeddedRow:
    """Return the row of a step's preview images.

    Raises:
        DataError: one cannot be read.
    """
    return EmbeddedRow(label, tuple(image_data_uri(path) for path in preview.images))


def preview_prompts(previews: Sequence[Preview]) -> list[str]:
    """Return the prompts of the preview images, from the metadata of the last ones."""
    return [read_prompt(path) for path in previews[-1].images] if previews else []
