"""Images and captions on disk, valid and damaged."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return an image's file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Return an image of soft random colours, unlike that of another seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def noisy(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Return a noisy image, whose file cannot be small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


def write_image(
    file: Path, content: bytes | Image.Image, caption: str | bytes | None = "a thing"
) -> Path:
    """Write an image and its caption."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else encoded(content))
    if caption is not None:
        text = caption if isinstance(caption, bytes) else caption.encode()
        file.with_suffix(".txt").write_bytes(text)
    return file


def bomb(width: int, height: int) -> bytes:
    """Return a valid PNG of one bit per pixel: about a kilobyte per million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    line = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    pieces = [packer.compress(line * 100) for _ in range(height // 100)]
    data = b"".join([*pieces, packer.compress(line * (height % 100)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
