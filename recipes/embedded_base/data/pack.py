"""The packed dataset: one tar with metadata, images and attribution.

Members:

* `meta.jsonl.zlib`: one JSON object a line (see `Row`), compressed with zlib;
* `images.bin`: AVIF files (4:4:4, quality 80) end to end; `off` and `len` of a row find its own;
* `ATTRIBUTION.txt`: the credits that the licences of the sources ask for.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from lorasmith.data.images.open_image import open_image

META, IMAGES, ATTRIBUTION = "meta.jsonl.zlib", "images.bin", "ATTRIBUTION.txt"
AVIF_QUALITY = 80


class Row(TypedDict):
    """The metadata of one image."""

    id: int
    style: str
    role: str
    """'base', or 'holdout' for pictures the base model is never trained on."""
    codepoint: str | None
    name: str
    caption: str
    captions: list[str]
    """All phrasings; the first is `caption`."""
    keywords: list[str]
    colours: list[str]
    group: str
    subgroup: str
    tone: int
    style_phrase: str
    style_desc: str
    licence: str
    licensor: str
    package: str
    icon: str
    also: list[str]
    """Names of icons of this style that look exactly the same, and were left out."""
    off: int
    len: int
    holdout: str
    """Name of the hold-out set, '' for base pictures."""


class PackError(RuntimeError):
    """A file is not a packed dataset."""


def encode_picture(picture: npt.NDArray[np.uint8]) -> bytes:
    """Compress an image; small ones with sharp coloured edges need full chroma resolution."""
    buffer = io.BytesIO()
    # One thread: many images are encoded side by side, and the bytes must be repeatable.
    Image.fromarray(picture).save(
        buffer, "AVIF", quality=AVIF_QUALITY, subsampling="4:4:4", speed=6, max_threads=1
    )
    return buffer.getvalue()


def decode_picture(data: bytes) -> npt.NDArray[np.uint8]:
    """Return the image in an AVIF file as height, width, RGB."""
    with open_image(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def write_pack(path: Path, rows: Sequence[Row], images: Sequence[bytes], credits: str) -> None:
    """Write the tar in one piece; sets `id`, `off` and `len` of every row."""
    offset = 0
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        row["id"], row["off"], row["len"] = index, offset, len(image)
        offset += len(image)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    members = {
        META: zlib.compress(lines.encode(), 9),
        IMAGES: b"".join(images),
        ATTRIBUTION: credits.encode(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place at the end: a reader never sees half a pack.
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w") as archive:
        for name, data in members.items():
            # No times or owners: the same images and words give the same file.
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    partial.replace(path)


def read_pack(path: Path) -> tuple[list[Row], list[bytes]]:
    """Return the rows of a pack and the AVIF file of each."""
    try:
        with tarfile.open(path) as archive:
            meta = zlib.decompress(_member(archive, META))
            images = _member(archive, IMAGES)
    except (tarfile.TarError, KeyError, zlib.error) as error:
        raise PackError(f"{path} is not a pack of captioned pictures: {error}") from error
    rows: list[Row] = [json.loads(line) for line in meta.decode().split("\n") if line]
    return rows, [images[row["off"] : row["off"] + row["len"]] for row in rows]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a regular file")
    return file.read()
