"""Reading the text file with a picture's caption."""

from dataclasses import dataclass
from pathlib import Path

MAX_CAPTION_BYTES = 1 << 20
"""Bytes. A caption is a few hundred; whatever is larger is something else."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_SAVE = "save it as UTF-8"


@dataclass(frozen=True)
class CaptionFile:
    """What a caption file holds."""

    text: str = ""
    """The caption on one line; empty when there is none or it cannot be read."""
    error: str = ""
    """Why it cannot be read, and what to do; empty when it can."""
    has_bom: bool = False
    """It starts with UTF-8's byte order mark, which is left out of the text."""


def read_caption_file(path: Path) -> CaptionFile:
    """Read a caption file. Nothing is guessed: what is not UTF-8 is refused with the reason."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return CaptionFile(error=f"cannot be read ({error.strerror})")
    if len(raw) > MAX_CAPTION_BYTES:
        return CaptionFile(error="larger than 1 MiB; it cannot be a caption")
    return decode_caption(raw)


def decode_caption(raw: bytes) -> CaptionFile:
    """Decode the bytes of a caption file."""
    if raw.startswith(_UTF16_MARKS):
        return CaptionFile(error=f"UTF-16 text; {_SAVE}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind the mark.
        place = error.start + len(_UTF8_MARK) * raw.startswith(_UTF8_MARK)
        return CaptionFile(error=f"not UTF-8 text (byte {place} is 0x{raw[place]:02x}); {_SAVE}")
    if "\0" in text:  # how UTF-16 without a mark looks
        return CaptionFile(error=f"holds NUL characters, so it is not UTF-8 text; {_SAVE}")
    return CaptionFile(text=" ".join(text.split()), has_bom=raw.startswith(_UTF8_MARK))
