"""Reading the text file with an image's caption."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from lorasmith.core.regular_files import open_regular_file

MAX_CAPTION_BYTES = 1 << 20
"""Larger files are refused: a caption has a few hundred bytes."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_SAVE_AS_UTF8 = "save it as UTF-8"


@dataclass(frozen=True)
class CaptionFile:
    """What a caption file holds."""

    text: str = ""
    """The caption on one line; empty when there is none or it cannot be read."""
    error: str = ""
    """Why it cannot be read, and what to do; empty when it can."""
    has_bom: bool = False
    """It starts with UTF-8's byte order mark, which the text leaves out."""
    line_count: int = 0
    """Lines with text in them; they are joined."""
    is_json: bool = False
    """It is a JSON object or list, which is hardly meant as a caption."""


def read_caption_file(path: Path) -> CaptionFile:
    """Read a caption file. The encoding is never guessed: an error names what is not UTF-8."""
    try:
        with open_regular_file(path, sys.maxsize) as stream:
            raw = stream.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return CaptionFile(error=f"cannot be read ({error.strerror})")
    if len(raw) > MAX_CAPTION_BYTES:
        return CaptionFile(error="larger than 1 MiB; it cannot be a caption")
    return decode_caption(raw)


def decode_caption(raw: bytes) -> CaptionFile:
    if raw.startswith(_UTF16_MARKS):
        return CaptionFile(error=f"UTF-16 text; {_SAVE_AS_UTF8}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind the mark.
        position = error.start + len(_UTF8_MARK) * raw.startswith(_UTF8_MARK)
        detail = f"byte {position} is 0x{raw[position]:02x}"
        return CaptionFile(error=f"not UTF-8 text ({detail}); {_SAVE_AS_UTF8}")
    if "\0" in text:  # how UTF-16 without a mark looks
        return CaptionFile(error=f"holds NUL characters, so it is not UTF-8 text; {_SAVE_AS_UTF8}")
    return CaptionFile(
        text=" ".join(text.split()),
        has_bom=raw.startswith(_UTF8_MARK),
        line_count=sum(bool(line.strip()) for line in text.splitlines()),
        is_json=_is_json(text),
    )


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object, or a list of objects or texts."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or any(isinstance(item, (dict, str)) for item in value)
