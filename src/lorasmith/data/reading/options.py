"""How a dataset is read."""

from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True)
class ReadOptions:
    """How a dataset is read: settings of ``[data]``, and what a command adds."""

    caption_source: str = AUTO
    """A name in ``CAPTION_SOURCES``."""
    default_caption: str | None = None
    """For images without a caption; without it they are errors."""
    follow_links: bool = False
    """Whether links out of the dataset's folder are followed."""


DEFAULT_OPTIONS = ReadOptions()
