import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.errors import DataError
from lorasmith.data.images.square_images import (
    SquareImages,
    load_square_images,
    random_flip,
    signed_to_uint8,
    uint8_to_signed,
)
from lorasmith.data.reading.row import Row

CPU = torch.device("cpu")


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Twelve images of different sizes and colours in one file."""
    file = tmp_path / "all.bin"
    rows, data = [], b""
    for index in range(12):
        image = Image.new("RGB", (8 + index, 8), (20 * index, 7, 255 - index))
        image.putpixel((4, 4), (0, 255, 0))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        encoded = stream.getvalue()
        rows.append(Row(str(index), ("x",), {}, file, len(data), len(encoded)))
        data += encoded
    file.write_bytes(data)
    return rows


def make_rng(count: int, seed: int = 0) -> BatchRng:
    return BatchRng(torch.Generator().manual_seed(seed), count)


def test_square_images_survive_a_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    signed = uint8_to_signed(values)
    assert (float(signed[0]), float(signed[255])) == (-1.0, 1.0)
    assert torch.equal(signed_to_uint8(signed), values)
    assert signed_to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
    assert signed_to_uint8(signed[100:101] + 0.4 / 127.5).item() == 100


def test_rows_are_decoded_in_order(rows: list[Row]) -> None:
    calls: list[int] = []
    pictures = load_square_images(rows, 8, lambda: calls.append(1))
    assert (pictures.shape, pictures.dtype) == ((12, 3, 8, 8), torch.uint8)
    assert pictures[:, 0, 0, 0].tolist() == [20 * index for index in range(12)]
    assert len(calls) == 12


def test_decoding_batch_by_batch_gives_the_same(rows: list[Row]) -> None:
    resident = SquareImages(rows, 8, CPU, memory_gib=1.0)
    streamed = SquareImages(rows, 8, CPU, memory_gib=0.0)
    indices = torch.tensor([5, 0, 5, 11])
    assert len(resident) == len(streamed) == 12
    assert torch.equal(resident.get_batch(indices), streamed.get_batch(indices))
    assert resident.get_batch(indices).dtype == torch.float32
    for row in rows:
        row.path.unlink(missing_ok=True)
    resident.get_batch(indices)
    with pytest.raises(DataError, match="cannot be read"):
        streamed.get_batch(indices)


def test_damaged_image_names_its_row(rows: list[Row]) -> None:
    rows[3].path.write_bytes(b"\0" * rows[3].path.stat().st_size)
    with pytest.raises(DataError, match="0: cannot be decoded"):
        load_square_images(rows, 8)


def test_only_allowed_images_are_flipped() -> None:
    pictures = torch.arange(3 * 4.0).view(1, 3, 1, 4).repeat(400, 1, 1, 1)
    allowed = torch.arange(400) % 2 == 0
    result = random_flip(pictures, allowed, make_rng(400))
    mirrored = (result != pictures).flatten(1).any(dim=1)
    assert not mirrored[~allowed].any()
    assert 70 < int(mirrored[allowed].sum()) < 130
    assert torch.equal(result[mirrored], pictures[mirrored].flip(-1))
    repeated = random_flip(pictures, allowed, make_rng(400))
    assert torch.equal(repeated, result)
