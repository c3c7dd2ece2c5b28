"""Whole datasets with faults in them: each file is named, none raises, nothing is written."""

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.dataset_files import bomb, encoded, noisy, scene, write_image
from lorasmith.config.data import RowFilter
from lorasmith.config.train_data import DataConfig
from lorasmith.core.errors import DataError, LorasmithWarning
from lorasmith.data.images.buckets import assign_bucket, make_buckets
from lorasmith.data.images.decode import decode_image
from lorasmith.data.reading.problems import Problem
from lorasmith.data.scan import image_inspection
from lorasmith.data.scan.scan import read_class_rows, read_usable_rows, scan_dataset


def data_of(folder: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"path": folder, "tag": "thing", **more})


def only_problem(folder: Path) -> Problem:
    write_image(folder / "zz_healthy.png", scene(99))
    result = scan_dataset(folder)
    assert [row.key for row in result.rows][-1] == "zz_healthy.png"
    (problem,) = result.problems
    return problem


def errors_of(folder: Path) -> dict[str, str]:
    return {problem.file: problem.kind for problem in scan_dataset(folder).errors}


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    for index in range(4):
        write_image(tmp_path / f"{index}.png", scene(index), f"thing {index}")
    return tmp_path


def test_healthy_folder_has_no_problems(healthy: Path) -> None:
    result = scan_dataset(healthy)
    assert (len(result.rows), result.image_count, result.problems) == (4, 4, [])
    assert {info.size for info in result.images} == {(96, 96)}
    assert not any(info.is_blank or info.has_transparency for info in result.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_usable_rows(data_of(healthy)) == result.rows


# --- images -----------------------------------------------------------------------------------


def test_truncated_jpeg_that_verifies_is_found(tmp_path: Path) -> None:
    full = encoded(noisy(0), "JPEG")
    file = write_image(tmp_path / "cut.jpg", full[: len(full) * 2 // 3])
    Image.open(file).verify()  # which sees nothing wrong with it
    problem = only_problem(tmp_path)
    assert (problem.file, problem.kind, problem.severity) == ("cut.jpg", "damaged", "error")
    assert re.match(r"cannot be decoded \(.*truncated", problem.detail)


def test_all_kinds_of_junk_are_in_one_report(healthy: Path) -> None:
    junk = {
        "empty.png": b"",
        "page.jpg": b"<!DOCTYPE html>\n<html><body>404 not found</body></html>",
        "marked.jpg": b"\xef\xbb\xbf\n<HTML>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 80,
        "noise.webp": b"\x01\x02\x03" * 50,
    }
    for name, content in junk.items():
        write_image(healthy / name, content)
    (healthy / "folder.png").mkdir()
    write_image(healthy / "folder.png" / "inner.png", scene(5))
    result = scan_dataset(healthy)
    assert len(result.rows) == 4
    kinds = {problem.file: (problem.kind, problem.detail) for problem in result.errors}
    assert set(kinds) == {*junk, "folder.png"}
    assert kinds["empty.png"][0] == "empty-file"
    assert kinds["folder.png"][0] == "folder"
    assert kinds["noise.webp"][0] == "damaged"
    for name, words in {
        "page.jpg": "an HTML page", "marked.jpg": "an HTML page", "drawing.png": "an SVG drawing",
        "pointer.png": "git lfs pull", "phone.jpg": "convert it to JPEG",
    }.items():  # fmt: skip
        assert kinds[name][0] == "not-an-image"
        assert words in kinds[name][1]


TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How an upright picture is stored under each orientation: what a viewer does, undone."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_orientations_give_the_same_tensor_and_bucket(tmp_path: Path, kind: str) -> None:
    upright = scene(3, (160, 96))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turn = TRANSPOSE.get(orientation)
        stored = upright.transpose(turn) if turn is not None else upright
        content = encoded(stored, kind, exif=exif, **options.get(kind, {}))
        write_image(tmp_path / f"{orientation}.{kind.lower()}", content)
    result = scan_dataset(tmp_path)
    assert [info.size for info in result.images] == [(160, 96)] * 8
    buckets = make_buckets(64, 16, 2.0)
    assert len({assign_bucket(info.size, buckets) for info in result.images}) == 1
    first, *others = (
        np.asarray(decode_image(row.read_bytes(), row.key), int) for row in result.rows
    )
    for pixels in others:
        assert np.abs(pixels - first).max() <= (0 if kind in ("PNG", "TIFF", "WEBP") else 12)


def moving(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "lime")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_first_frame_is_used_with_a_warning(tmp_path: Path, kind: str) -> None:
    file = write_image(tmp_path / f"a.{kind.lower()}", moving(kind))
    problem = only_problem(tmp_path)
    assert (problem.file, problem.kind, problem.severity) == (file.name, "animated", "warning")
    red, green, blue = decode_image(file.read_bytes(), "a").getpixel((5, 5))
    assert (red > 240, green < 15, blue < 15) == (True, True, True)
    with pytest.warns(LorasmithWarning, match=f"{file.name}: has several frames; only the first"):
        assert len(read_usable_rows(data_of(tmp_path))) == 2


def test_augmentations_of_one_image_are_no_frames(tmp_path: Path) -> None:
    write_image(tmp_path / "phone.jpg", moving("MPO"))
    assert scan_dataset(tmp_path).problems == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("side", [12_000, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_quickly_and_in_little_memory(tmp_path: Path, side: int) -> None:
    file = write_image(tmp_path / "bomb.png", bomb(side, side))
    assert file.stat().st_size < 150_000
    (tmp_path / "warm").mkdir()
    only_problem_count = len(
        scan_dataset(write_image(tmp_path / "warm" / "a.png", scene(0)).parent).problems
    )
    assert only_problem_count == 0  # readers are loaded now
    Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    before, start = memory("VmRSS"), time.monotonic()
    (problem,) = scan_dataset(tmp_path).errors
    assert time.monotonic() - start < 2.0
    assert memory("VmHWM") - before < 200 * 2**10
    assert (problem.file, problem.kind) == ("bomb.png", "too-large")
    assert "too large; scale it down" in problem.detail


def memory(name: str) -> int:
    """Return a figure of this process in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1])


def test_file_that_is_too_large_is_not_read(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(healthy / "big.png", noisy(1, (300, 300)))
    monkeypatch.setattr(image_inspection, "MAX_FILE_BYTES", 100_000)
    assert errors_of(healthy) == {"big.png": "too-large"}


def test_broken_links_and_undecodable_names_are_reported(healthy: Path) -> None:
    (healthy / "gone.png").symlink_to(healthy / "nowhere.png")
    (healthy / "gone.txt").write_text("thing")
    (healthy / ".hidden.png").write_bytes(b"")
    (healthy / "__MACOSX").mkdir()
    write_image(healthy / "__MACOSX" / "._0.png", b"\0\5\x16\7")
    assert errors_of(healthy) == {"gone.png": "missing-file"}
    (healthy / "gone.png").unlink()
    try:
        write_image(Path(str(healthy).encode().decode() + "/caf\udce9.png"), scene(7))
    except OSError:
        pytest.skip("this file system has no such names")
    assert errors_of(healthy) == {"caf\\udce9.png": "bad-name"}


# --- masks --------------------------------------------------------------------------------------


def test_mask_belongs_to_its_image_and_is_no_row(healthy: Path) -> None:
    mask = write_image(healthy / "2.mask.png", Image.new("L", (48, 48), 200), caption=None)
    result = scan_dataset(healthy)
    assert result.problems == []
    assert [row.mask_path for row in result.rows] == [None, None, mask, None]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (96, 60), 255), "2.mask.png: the mask is 96 x 60 and its image 96 x 96"),
        (Image.new("L", (96, 96), 0), "all black"),
        (b"", "2.mask.png: cannot be decoded"),
    ],
)
def test_unusable_masks_are_reported(healthy: Path, mask: Image.Image | bytes, words: str) -> None:
    write_image(healthy / "2.mask.png", mask, caption=None)
    (problem,) = scan_dataset(healthy).problems
    assert (problem.file, problem.kind) == ("2.png", "bad-mask")
    assert words in problem.detail


def test_mask_without_an_image_is_a_warning(healthy: Path) -> None:
    write_image(healthy / "other.mask.png", Image.new("L", (96, 96), 255), caption=None)
    (problem,) = scan_dataset(healthy).problems
    assert (problem.kind, problem.severity) == ("lonely-mask", "warning")


# --- captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "kind", "words"),
    [
        (b"it\x92s a thing", "bad-caption", "not UTF-8 text (byte 2 is 0x92)"),
        ("a thing".encode("utf-16"), "bad-caption", "UTF-16 text"),
        ("a thing".encode("utf-16-le"), "bad-caption", "NUL characters"),
        (b"\xef\xbb\xbfit\x92s", "bad-caption", "byte 5 is 0x92"),
        (b"x" * (2 << 20), "bad-caption", "larger than 1 MiB"),
        (b"", "no-caption", "write a.txt, which is empty"),
        (b" \r\n\t", "no-caption", "write a.txt, which is empty"),
        (b"\xef\xbb\xbf", "no-caption", "which is empty"),
        (None, "no-caption", "write a.txt beside it"),
    ],
)
@pytest.mark.filterwarnings("ignore::lorasmith.core.errors.LorasmithWarning")
def test_unusable_captions_are_reported(
    tmp_path: Path, caption: bytes | None, kind: str, words: str
) -> None:
    write_image(tmp_path / "a.png", scene(0), caption)
    write_image(tmp_path / "b.png", scene(1))
    problem = scan_dataset(tmp_path).errors[0]
    assert (problem.kind, problem.file) == (kind, "a.txt" if kind == "bad-caption" else "a.png")
    assert words in problem.detail
    with pytest.raises(DataError, match=re.escape(words)):
        read_usable_rows(data_of(tmp_path))


def test_byte_order_mark_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", scene(0), b"\xef\xbb\xbfa thing")
    problem = only_problem(tmp_path)
    assert (problem.file, problem.kind, problem.severity) == ("a.txt", "caption-mark", "warning")
    assert scan_dataset(tmp_path).rows[0].caption == "a thing"


@pytest.mark.parametrize("ending", [".caption", ".png.txt", ".text"])
def test_captions_with_another_ending_are_counted_and_named(tmp_path: Path, ending: str) -> None:
    for index in range(3):
        write_image(tmp_path / f"{index}.png", scene(index), caption=None)
        (tmp_path / f"{index}{ending}").write_text("a thing")
    with pytest.raises(DataError) as caught:
        read_usable_rows(data_of(tmp_path))
    assert "3 of 3 images have no caption, first 0.png" in str(caught.value)
    assert f"captions are read from 0.txt, and there is 0{ending}: rename it" in str(caught.value)


def test_caption_in_capitals_is_found_on_every_file_system(tmp_path: Path) -> None:
    write_image(tmp_path / "A.PNG", scene(0), caption=None)
    (tmp_path / "a.TXT").write_text("a thing")
    assert scan_dataset(tmp_path).rows[0].caption == "a thing"


@pytest.mark.parametrize("name", ["photo.heic", "strange.jpgg"])
def test_captioned_file_that_is_not_read_is_a_warning(healthy: Path, name: str) -> None:
    write_image(healthy / name, b"whatever it is")
    (problem,) = scan_dataset(healthy).problems
    assert (problem.file, problem.kind, problem.severity) == (name, "unknown-kind", "warning")


def test_folder_of_unreadable_files_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.heic", b"whatever it is")
    with pytest.raises(DataError, match=r"no images found .*; there is photo\.heic: \.heic is"):
        scan_dataset(tmp_path)


# --- kohya's folders ----------------------------------------------------------------------------


def test_repeats_and_captions_come_from_the_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "10_sks dog" / "a.png", scene(0), caption=None)
    write_image(tmp_path / "10_sks dog" / "deeper" / "b.png", scene(1), "a sleeping sks dog")
    write_image(tmp_path / "3_sks_puppy" / "c.png", scene(2), caption=None)
    write_image(tmp_path / "plain" / "4_no" / "d.png", scene(3), "a thing")
    write_image(tmp_path / "0_left out" / "e.png", scene(4))
    result = scan_dataset(tmp_path)
    assert [(row.key, row.repeats, row.caption) for row in result.rows] == [
        ("10_sks dog/a.png", 10, "sks dog"),
        ("10_sks dog/deeper/b.png", 10, "a sleeping sks dog"),
        ("3_sks_puppy/c.png", 3, "sks puppy"),
        ("plain/4_no/d.png", 1, "a thing"),
    ]
    kinds = sorted((problem.kind, problem.file) for problem in result.problems)
    assert kinds == [
        ("folder-caption", "10_sks dog/a.png"),
        ("folder-caption", "3_sks_puppy/c.png"),
        ("misplaced-repeats", "plain/4_no"),
        ("no-repeats", "0_left out"),
    ]
    assert result.errors == []


def test_empty_caption_file_is_not_filled_from_the_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "10_dog" / "a.png", scene(0), caption="")
    assert errors_of(tmp_path) == {"10_dog/a.png": "no-caption"}


def test_year_is_hardly_a_number_of_repeats(tmp_path: Path) -> None:
    write_image(tmp_path / "2024_holiday" / "a.png", scene(0))
    problem = only_problem(tmp_path)
    assert (problem.kind, problem.severity) == ("many-repeats", "warning")
    assert "its images come once in an epoch" in problem.detail
    assert scan_dataset(tmp_path).rows[0].repeats == 1


def test_many_repeats_are_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "300_holiday" / "a.png", scene(0))
    problem = only_problem(tmp_path)
    assert (problem.kind, problem.severity) == ("many-repeats", "warning")
    assert "300 times in an epoch" in problem.detail


# --- metadata.jsonl -----------------------------------------------------------------------------


def test_every_bad_line_of_a_listing_is_named(healthy: Path) -> None:
    write_image(healthy / "0.mask.png", Image.new("L", (96, 96), 255), caption=None)
    lines = [
        '{"file_name": "0.png", "text": "a thing"}',
        '{"file_name": "absent.png", "text": "a thing"}',
        "not json",
        '{"file_name": "1.png"}',
        '{"file_name": "0.mask.png", "text": "a thing"}',
        '{"file_name": "a\\u0000.png", "text": "a thing"}',
    ]
    (healthy / "metadata.jsonl").write_text("\n".join(lines))
    result = scan_dataset(healthy)
    assert [(row.key, row.mask_path is not None) for row in result.rows] == [("0.png", True)]
    assert errors_of(healthy) == {
        "metadata.jsonl:2": "missing-file", "metadata.jsonl:3": "bad-line",
        "metadata.jsonl:4": "bad-line", "metadata.jsonl:5": "bad-line",
        "metadata.jsonl:6": "bad-line",
    }  # fmt: skip


def test_images_that_a_listing_leaves_out_are_a_warning(healthy: Path) -> None:
    lines = [f'{{"file_name": "{n}.png", "text": "a thing"}}' for n in range(3)]
    (healthy / "metadata.jsonl").write_text("\n".join(lines))
    (problem,) = scan_dataset(healthy).problems
    assert (problem.file, problem.kind, problem.severity) == ("3.png", "unlisted", "warning")


# --- what training makes of it ------------------------------------------------------------------


@pytest.fixture
def faulty(healthy: Path) -> Path:
    write_image(healthy / "cut.png", encoded(noisy(0))[:500])
    write_image(healthy / "bare.png", scene(8), caption=None)
    write_image(healthy / "empty.png", b"")
    write_image(healthy / "void.png", b"")
    return healthy


def test_stop_reports_all_problems_in_one_line(faulty: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_usable_rows(data_of(faulty))
    message = str(caught.value)
    assert "\n" not in message
    assert "1 of 8 images have no caption, first bare.png; write bare.txt beside it" in message
    assert "cut.png: cannot be decoded" in message
    assert "2 files are empty, first empty.png" in message
    assert f"lorasmith check {faulty}" in message


def test_skip_leaves_out_with_a_warning(faulty: Path) -> None:
    with pytest.warns(LorasmithWarning, match="left out, 4 of 8 images are used") as caught:
        rows = read_usable_rows(data_of(faulty, bad_images="skip"))
    assert [row.key for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert len(caught) == 1


def test_skip_does_not_train_on_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", b"")
    with pytest.raises(DataError, match="no image is left to train on"):
        read_usable_rows(data_of(tmp_path, bad_images="skip"))


def test_filters_come_before_images_are_opened(healthy: Path) -> None:
    write_image(healthy / "0.png", b"")
    lines = [f'{{"file_name": "{n}.png", "text": "x", "score": {n}}}' for n in range(4)]
    (healthy / "metadata.jsonl").write_text("\n".join(lines))
    score_filter = RowFilter(column="score", op=">=", value=2)
    rows = read_usable_rows(data_of(healthy, filters=[score_filter.model_dump()]))
    assert [row.key for row in rows] == ["2.png", "3.png"]


def test_transparent_images_lie_on_the_configured_colour(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", Image.new("RGBA", (32, 32), (10, 200, 30, 0)))
    result = scan_dataset(tmp_path, background=(255, 0, 255))
    assert result.images[0].has_transparency
    assert result.images[0].fingerprint.colors.reshape(-1, 3).tolist() == [[255, 0, 255]] * 256


def test_class_images_need_no_captions_with_a_class_caption(healthy: Path) -> None:
    for text in healthy.glob("[01].txt"):
        text.unlink()
    data = data_of(healthy, reg_data_dir=healthy)
    with pytest.raises(DataError, match="2 of 4 images have no caption"):
        read_class_rows(data)
    data = data_of(healthy, reg_data_dir=healthy, reg_caption="a dog")
    captions = [row.caption for row in read_class_rows(data)]
    assert captions == ["a dog", "a dog", "thing 2", "thing 3"]
    assert read_class_rows(data_of(healthy)) == []


def test_progress_is_reported(healthy: Path) -> None:
    reported: list[object] = []

    class Bar:
        def __init__(self, title: str, total: int) -> None:
            reported.append(total)

        def __enter__(self) -> Callable[[int], None]:
            return reported.append

        def __exit__(self, *error: object) -> None:
            reported.append("end")

    scan_dataset(healthy, bar=Bar)
    assert reported == [4, 1, 1, 1, 1, "end"]


def test_nothing_is_written_into_the_folder(faulty: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [faulty, *faulty.rglob("*")]
        return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}

    before = state()
    scan_dataset(faulty)
    with pytest.warns(LorasmithWarning):
        read_usable_rows(data_of(faulty, bad_images="skip"))
    assert state() == before
