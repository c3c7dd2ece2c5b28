import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.core.errors import DataError
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row, hash_row


def image(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), color).save(path)
    return path


def write_manifest(folder: Path, *records: object) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def pack(path: Path, meta: bytes, images: bytes = b"", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in (("meta.jsonl.zlib", meta), ("images.bin", images)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def packed_meta(*records: dict) -> bytes:
    return zlib.compress("\n".join(json.dumps(record) for record in records).encode())


# --- a folder of images and text files --------------------------------------------------


def test_folder_with_captions_beside_the_images_is_read(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "c.webp"):
        file = image(tmp_path / name)
        file.with_suffix(".txt").write_text("\ufeff  a red\n  square ", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a picture", encoding="utf-8")
    rows = read_rows(tmp_path)
    assert [row.key for row in rows] == ["b.png", "c.webp", "sub/a.JPG"]
    assert {row.captions for row in rows} == {("a red square",)}
    assert rows[2].read_bytes() == (tmp_path / "sub/a.JPG").read_bytes()


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / name)
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 of 3 images have no caption, first b\.png; write b"):
        read_rows(tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images found \(looked for .*\.png"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="no such data folder or packed file"):
        read_rows(tmp_path / "absent")


def test_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 text \(byte 3 is 0xe9\)"):
        read_rows(tmp_path)


# --- a folder with a list -----------------------------------------------------------------


def test_folder_with_a_manifest_is_read(tmp_path: Path) -> None:
    image(tmp_path / "x/1.png")
    image(tmp_path / "2.png")
    write_manifest(
        tmp_path,
        {"file_name": "x/1.png", "text": "one  thing", "score": 5},
        "",
        {"file_name": "2.png", "captions": ["two", " two ", "", "2"], "caption": "unused"},
    )
    first, second = read_rows(tmp_path)
    assert (first.key, first.captions, first.columns["score"]) == ("x/1.png", ("one thing",), 5)
    assert second.captions == ("two", "2")
    assert second.caption == "two"


def test_single_caption_needs_no_list(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    write_manifest(tmp_path, {"file_name": "1.png", "captions": "a cat"})
    assert read_rows(tmp_path)[0].captions == ("a cat",)


def test_unicode_line_separator_does_not_end_a_line(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    write_manifest(tmp_path, {"file_name": "1.png", "text": "one\u2028two\x85three"})
    assert read_rows(tmp_path)[0].caption == "one two three"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, r"metadata\.jsonl:1: has no file_name"),
        ({"file_name": 3, "text": "x"}, "has no file_name"),
        ({"file_name": "../out.png", "text": "x"}, r"\.\./out\.png is not a file inside"),
        ({"file_name": "absent.png", "text": "x"}, "is not a file inside"),
        ({"file_name": "1.png"}, "has no caption"),
        ({"file_name": "1.png", "captions": [], "text": " "}, "has no caption"),
        ({"file_name": "1.png", "captions": 7}, "has no caption"),
        ("{", r"metadata\.jsonl:1: not JSON"),
        ("[]", "not a JSON object"),
        ("", "lists no images"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, record: object, message: str) -> None:
    image(tmp_path / "out.png")
    image(tmp_path / "data/1.png")
    with pytest.raises(DataError, match=message):
        read_rows(write_manifest(tmp_path / "data", record))


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = image(tmp_path / "secret.png")
    write_manifest(tmp_path / "data", {"file_name": "link.png", "text": "x"})
    (tmp_path / "data" / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"link\.png is not a file inside"):
        read_rows(tmp_path / "data")
    with pytest.raises(DataError, match="is not a file inside"):
        read_rows(write_manifest(tmp_path / "data", {"file_name": str(secret), "text": "x"}))


def test_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(DataError, match=r"metadata\.jsonl: not UTF-8 text \(byte 13\)"):
        read_rows(tmp_path)


# --- a packed file ------------------------------------------------------------------------


def test_packed_file_is_read(tmp_path: Path) -> None:
    records = [
        {"style": "noto", "icon": "cat", "captions": ["a cat", "cat"], "off": 0, "len": 3},
        {"style": "noto", "icon": "dog", "caption": "a dog", "off": 3, "len": 2, "role": "base"},
    ]
    path = pack(tmp_path / "d.tar", packed_meta(*records), b"CATDG....")
    cat, dog = read_rows(path)
    assert (cat.key, cat.captions, cat.read_bytes()) == ("noto/cat", ("a cat", "cat"), b"CAT")
    assert (dog.key, dog.read_bytes(), dog.columns["role"]) == ("noto/dog", b"DG", "base")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (packed_meta({"icon": "x", "off": 0, "len": 1, "caption": "x"}), "row 1: has no style"),
        (packed_meta({"style": "s", "icon": "x", "off": 0, "caption": "x"}), "has no len"),
        (
            packed_meta({"style": "s", "icon": "x", "off": "far", "len": 1, "caption": "x"}),
            "row 1: off and len are not whole numbers",
        ),
        (packed_meta({"style": "s", "icon": "x", "off": 0, "len": 1}), "has no caption"),
        (zlib.compress(b"{"), "row 1: not JSON"),
        (b"not compressed", "not a packed dataset"),
        (zlib.compress(b"caf\xe9"), "not a packed dataset"),
    ],
)
def test_bad_packed_file_is_named(tmp_path: Path, meta: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(pack(tmp_path / "d.tar", meta))


def test_other_files_are_no_packed_data(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    with tarfile.open(tmp_path / "b.tar", "w"):
        pass
    meta = packed_meta({"style": "s", "icon": "x", "off": 0, "len": 1, "caption": "x"})
    pack(tmp_path / "c.tar.gz", meta, b"x", "w:gz")  # its offsets would be wrong
    for name in ("a.tar", "b.tar", "c.tar.gz"):
        with pytest.raises(DataError, match=f"{name}: not a packed dataset"):
            read_rows(tmp_path / name)


# --- identity -----------------------------------------------------------------------------


def test_rows_hash_is_of_key_and_image(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"..picture..")
    row = Row("key", ("x",), {}, file, 2, 7)
    assert hash_row(row) == hashlib.sha256(b"key\0picture").hexdigest()
    assert hash_row(Row("key", ("other",), {"a": 1}, file, 2, 7)) == hash_row(row)
    assert hash_row(Row("other", ("x",), {}, file, 2, 7)) != hash_row(row)
    file.unlink()
    with pytest.raises(DataError, match=r"a\.bin: cannot be read"):
        row.read_bytes()
