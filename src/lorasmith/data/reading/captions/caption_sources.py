"""Where an image's caption comes from: text files, metadata, folder names, or a plug-in.

A caption source is a function from an ``ImageContext`` to a ``Caption``, or to None where it has
none for this image. ``registries.CAPTION_SOURCES`` holds them by name, and the setting
``data.caption_source`` names the one to use. ``auto`` takes the first answer of ``txt`` and
``folder-name`` in a folder, and asks ``metadata`` alone with a manifest and in a packed tar.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorasmith.core.errors import DataError
from lorasmith.core.text.trigger_word import unescape_brackets
from lorasmith.data.reading.captions.caption_file import CaptionFile, read_caption_file
from lorasmith.data.reading.links import FOLLOW_SETTING, LinkPolicy, list_entries
from lorasmith.data.reading.problems import Problem, ProblemKind
from lorasmith.registries import CAPTION_SOURCES

CAPTION_SUFFIX = ".txt"


def same_name(name: str) -> str:
    """Return what names have in common that some file systems take for one: their letters in any
    case and in any Unicode form (macOS decomposes them).
    """
    return unicodedata.normalize("NFC", name).casefold()


class SiblingFiles:
    """The files of one folder, found by name in any case and form, as some file systems do."""

    def __init__(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Take the names where they are known; otherwise the folder is listed on first use."""
        self._folder = folder
        self._names = names

    @cached_property
    def _exact_names(self) -> dict[str, str]:
        names = self._names if self._names is not None else _list_files(self._folder)
        return {name: name for name in names}

    @cached_property
    def _folded_names(self) -> dict[str, str]:
        return {same_name(name): name for name in reversed(self._exact_names)}

    def find(self, name: str) -> Path | None:
        match = self._exact_names.get(name) or self._folded_names.get(same_name(name))
        return None if match is None else self._folder / match


def _list_files(folder: Path) -> list[str]:
    try:
        return list_entries(folder)[1]
    except OSError:
        return []


@dataclass(frozen=True)
class ImageContext:
    """What a caption source may use to find the caption of an image."""

    key: str
    """The image's name inside the dataset: a relative path, or ``style/icon`` in a packed tar."""
    path: Path
    """The image file, or the packed tar."""
    root: Path
    """The dataset's folder, or the packed tar."""
    siblings: SiblingFiles
    """Files in the image's folder."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The image's line in metadata.jsonl or in the packed tar; empty in a plain folder."""
    folder_words: str = ""
    """``some words`` for an image in a kohya folder ``10_some_words``; empty elsewhere."""
    default_caption: str | None = None
    """The caption of images without one, where the user gives it; `find_caption` fills it in."""
    links: LinkPolicy | None = None
    """Which links are followed; None: all."""

    def find_sibling(self, suffix: str) -> Path | None:
        """Return the file beside the image with its stem and another suffix, in any case.

        Raises:
            DataError: it is a link out of the dataset.
        """
        path = self.siblings.find(self.path.stem + suffix)
        if path is not None and self.links is not None and self.links.refuses(path):
            raise DataError(
                f"{path.name} is a link out of the dataset and not read; copy the text into it, "
                f"or follow links with {FOLLOW_SETTING}"
            )
        return path

    def relative_path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Caption:
    """What a caption source found."""

    texts: tuple[str, ...] = ()
    """Phrasings, the main one first; empty where the place for the caption is empty."""
    problems: tuple[Problem, ...] = ()
    """An error makes the image unusable, a warning does not."""


CaptionSource = Callable[[ImageContext], Caption | None]
"""Finds the caption of one image. It may raise DataError: the image then has a bad caption."""


def find_caption(image: ImageContext, source: str) -> Caption:
    r"""Return the caption of an image, without texts where there is none.

    Escaped brackets lose their backslash, as in prompts: ``\(`` is the bracket itself in both.

    Args:
        image: which image.
        source: a name in ``CAPTION_SOURCES``.
    """
    caption = _ask(CAPTION_SOURCES.get(source), image) or Caption()
    if not all(_is_text(text) for text in caption.texts):
        detail = "has a caption with half of a surrogate pair, which is no text; write it again"
        return Caption(problems=(Problem(image.key, "bad-caption", detail),))
    texts = caption.texts
    if not texts and image.default_caption and not _has_error(caption):
        texts = (image.default_caption,)
    return Caption(tuple(map(unescape_brackets, texts)), caption.problems)


def _ask(source: CaptionSource, image: ImageContext) -> Caption | None:
    try:
        return source(image)
    except DataError as error:
        return Caption(problems=(Problem(image.key, "bad-caption", str(error)),))


def _is_text(text: str) -> bool:
    """Whether a text can be encoded: JSON can escape halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_error(caption: Caption) -> bool:
    return any(problem.severity == "error" for problem in caption.problems)


def find_auto_caption(image: ImageContext) -> Caption | None:
    """Take the usual caption of a layout; a default caption comes before a folder's name."""
    if image.columns:
        return read_metadata_caption(image)
    caption = read_text_caption(image)
    if caption is None and not image.default_caption:
        return read_folder_caption(image)
    return caption


def read_text_caption(image: ImageContext) -> Caption | None:
    """Read ``name.txt`` beside ``name.png``."""
    path = image.find_sibling(CAPTION_SUFFIX)
    if path is None:
        return None
    file, content = image.relative_path(path), read_caption_file(path)
    if content.error:
        return Caption(problems=(Problem(file, "bad-caption", content.error),))
    texts = (content.text,) if content.text else ()
    return Caption(texts, tuple(_warn_about_file(file, content)))


def _warn_about_file(file: str, content: CaptionFile) -> Iterator[Problem]:
    def warning(kind: ProblemKind, detail: str) -> Problem:
        return Problem(file, kind, detail, "warning")

    if content.has_bom:
        yield warning("caption-mark", "starts with a byte order mark, which is left out")
    if content.is_json:
        yield warning("json-caption", "is JSON, all of which is the caption; write its text alone")
    elif content.line_count > 1:
        detail = f"has {content.line_count} lines, which are joined into one caption"
        yield warning("caption-lines", f"{detail}; keep one of them if each is a caption")


def read_metadata_caption(image: ImageContext) -> Caption | None:
    """Read the column ``captions``, ``caption`` or ``text``: a text or a list of texts."""
    columns = image.columns
    value = columns.get("captions") or columns.get("caption") or columns.get("text")
    texts = value if isinstance(value, list) else [value]
    stripped = (" ".join(text.split()) for text in texts if isinstance(text, str))
    distinct = tuple(dict.fromkeys(text for text in stripped if text))
    return Caption(distinct) if distinct else None


def read_folder_caption(image: ImageContext) -> Caption | None:
    """Take the words of kohya's folder ``10_some words``."""
    if not image.folder_words:
        return None
    detail = f"has no caption and takes {image.folder_words!r} from its folder's name"
    warning = Problem(image.key, "folder-caption", detail, "warning")
    return Caption((image.folder_words,), (warning,))
