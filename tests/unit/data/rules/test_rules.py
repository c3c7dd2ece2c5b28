"""Every rule reports a dataset that breaks it, and nothing on a healthy one."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from helpers.dataset_files import encoded, scene, write_image
from lorasmith.data.images.buckets import make_buckets
from lorasmith.data.rules.facts import DatasetFacts, Finding
from lorasmith.data.rules.trigger_word import edit_distance, find_common_words, is_nearly_tag
from lorasmith.data.scan.scan import scan_dataset
from lorasmith.registries import DATASET_RULES

TAG = "inkmono"
BUCKETS = make_buckets(128, 32, 2.0)


def captions() -> list[str]:
    subjects = ["cat", "red house", "boat at sea", "old tree", "key", "two owls", "bread", "hill"]
    return [f"a {subject}, {TAG} style" for subject in [*subjects, "lamp", "child with a kite"]]


def healthy(folder: Path) -> Path:
    """Ten different images with different captions, all with the tag."""
    for index, caption in enumerate(captions()):
        write_image(folder / f"{index}.png", scene(index, (150, 130)), caption)
    return folder


def findings(folder: Path, tag: str | None = TAG) -> list[Finding]:
    facts = DatasetFacts(scan_dataset(folder), tag, BUCKETS)
    return [finding for rule in DATASET_RULES.load_all().values() for finding in rule(facts)]


def test_healthy_dataset_has_no_findings(tmp_path: Path) -> None:
    assert findings(healthy(tmp_path)) == []
    assert findings(tmp_path, tag=None) == []


Break = Callable[[Path], object]


def rewrite(pattern: str, replacement: str, count: int = 10) -> Break:
    def change(folder: Path) -> None:
        for index in range(count):
            text = folder / f"{index}.txt"
            text.write_text(text.read_text().replace(pattern, replacement))

    return change


def picture(image: Image.Image) -> Break:
    return lambda folder: write_image(folder / "3.png", image, captions()[3])


def caption(text: str) -> Break:
    return lambda folder: (folder / "3.txt").write_text(text)


def copied(folder: Path) -> None:
    (folder / "3.png").write_bytes((folder / "8.png").read_bytes())


def only(count: int) -> Break:
    def change(folder: Path) -> None:
        for index in range(count, 10):
            (folder / f"{index}.png").unlink()

    return change


def variant(of: int, change: Callable[[Image.Image], Image.Image]) -> Break:
    return picture(change(scene(of, (150, 130))))


def compressed(image: Image.Image) -> Image.Image:
    return Image.open(BytesIO(encoded(image, "JPEG", quality=25))).convert("RGB")


CASES: list[tuple[str, str, Break, tuple[str, ...], str]] = [
    ("damaged", "error", lambda f: write_image(f / "3.png", encoded(scene(3))[:300]), ("3.png",),
     "cannot"),
    ("empty-file", "error", lambda f: write_image(f / "3.png", b""), ("3.png",), "0 bytes"),
    ("animated", "warning",
     lambda f: (f / "3.png").write_bytes(
         encoded(scene(3), save_all=True, append_images=[scene(4)])),
     ("3.png",), "only the first"),
    ("no-caption", "error", lambda f: (f / "3.txt").unlink(), ("3.png",), "1 of 10 images"),
    ("bad-caption", "error", lambda f: (f / "3.txt").write_bytes(b"it\x92s"), ("3.txt",), "0x92"),
    ("tag-missing", "error", rewrite(f", {TAG} style", ""),
     tuple(f"{n}.png" for n in range(10)), "none of the 10 captions"),
    ("tag-missing", "warning", caption("a plain tree"), ("3.png",), "1 caption has no tag"),
    ("tag-spelling", "warning", caption("a tree, inkmnoo style"), ("3.png",), "'inkmnoo'"),
    ("tag-spelling", "warning", caption("a tree, ink-mono style"), ("3.png",), "'ink-mono'"),
    ("tag-spelling", "warning", caption("a tree, ink mono style"), ("3.png",), "'ink mono'"),
    ("tag-spelling", "warning", caption("a tree, ｉｎｋｍｏｎｏ"), ("3.png",), "reads otherwise"),
    ("tag-company", "advice", rewrite("a ", "a black "), (), "also has 'black'"),
    ("same-captions", "advice",
     lambda f: [(f / f"{n}.txt").write_text(f"a dog, {TAG}") for n in range(10)],
     (), "all 10 captions say"),
    ("long-captions", "advice", caption(f"{TAG}, " + "very " * 80), ("3.png",), "75 tokens"),
    ("long-captions", "warning", caption(f"{TAG}, " + "very " * 230), ("3.png",), "225 tokens"),
    ("garbled", "warning", caption(f"cafÃ© Ã©tÃ©, {TAG}"), ("3.png",), "wrong encoding"),
    ("duplicates", "warning", copied, ("3.png", "8.png"), "1 file is a copy"),
    ("near-duplicates", "warning", variant(8, lambda i: i.resize((300, 260))),
     ("3.png", "8.png"), "2 images look nearly"),
    ("near-duplicates", "warning", variant(8, compressed), ("3.png", "8.png"), "look nearly"),
    ("near-duplicates", "warning", variant(8, lambda i: ImageEnhance.Brightness(i).enhance(1.04)),
     ("3.png", "8.png"), "look nearly"),
    ("near-duplicates", "warning", variant(8, lambda i: i.crop((2, 2, 148, 128))),
     ("3.png", "8.png"), "look nearly"),
    ("tiny", "warning", picture(scene(3, (60, 50))), ("3.png",), "3.png (60x50) 2.6 times"),
    ("cropped", "warning", picture(scene(3, (900, 100))), ("3.png",), "3.png (900x100)"),
    ("blank", "warning", picture(Image.new("RGB", (150, 130), "red")), ("3.png",), "1 image is"),
    ("transparent", "advice", picture(scene(3, (150, 130)).convert("RGBA").rotate(20)),
     ("3.png",), "data.background_color"),
    ("few-images", "advice", only(9), (), "9 images are few"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "severity", "change", "files", "words"),
    CASES,
    ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)],
)
def test_broken_rule_is_reported_with_its_files(
    tmp_path: Path, rule: str, severity: str, change: Break, files: tuple[str, ...], words: str
) -> None:
    change(healthy(tmp_path))
    result = {finding.rule: finding for finding in findings(tmp_path)}
    assert rule in result
    assert result[rule].severity == severity
    assert result[rule].files == files
    assert words in result[rule].message
    expected = {rule, "tag-missing"} if rule == "tag-spelling" else {rule}
    assert set(result) - expected <= ({"few-images"} if severity == "error" else set())


def test_every_rule_is_tested() -> None:
    tested = {case[0] for case in CASES}
    assert set(DATASET_RULES.names()) - tested == {"files"}  # it reports several kinds


# --- the tag ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "tag", "expected"),
    [
        ("inkmno", "inkmono", True), ("inkmonos", "inkmono", True), ("Ink-Mono", "inkmono", True),
        ("ikn mono", "inkmono", True), ("mono", "inkmono", False), ("kimono", "inkmono", False),
        ("cat", "sks", False), ("sk", "sks", False), ("skss", "sks", False), ("s-k-s", "sks", True),
        ("sks dgo", "sks dog", True), ("sks cat", "sks dog", False),
        ("watercolor", "watercolour", True),
    ],
)  # fmt: skip
def test_words_close_to_the_tag_are_reported(phrase: str, tag: str, expected: bool) -> None:
    assert is_nearly_tag(phrase, tag) is expected


def test_ordinary_word_is_no_misspelling_of_the_tag(tmp_path: Path) -> None:
    healthy(tmp_path)
    for index in range(8):
        (tmp_path / f"{index}.txt").write_text(f"bear {index} at work, bearx")
    (tmp_path / "8.txt").write_text("a bear in snow")
    assert "tag-spelling" not in {finding.rule for finding in findings(tmp_path, "bearx")}


def test_common_words_keep_their_order(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", scene(0), "A photo of one brown dog, inkmono style")
    write_image(tmp_path / "b.png", scene(1), "the brown Dog; inkmono style photo")
    rows = scan_dataset(tmp_path).rows
    assert find_common_words(rows, TAG) == ["photo", "brown", "dog"]
    assert find_common_words(rows) == ["photo", "brown", "dog", "inkmono"]
    assert find_common_words([]) == []


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distances_are_a_distance(word: str, other: str) -> None:
    distance = edit_distance(word, other)
    assert distance == edit_distance(other, word)
    assert (distance == 0) is (word == other)
    assert abs(len(word) - len(other)) <= distance <= max(len(word), len(other))


@given(st.text("abcd", min_size=2, max_size=8), st.data())
def test_single_typo_is_a_distance_of_1(word: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(word) - 2))
    swapped = word[:position] + word[position + 1] + word[position] + word[position + 2 :]
    dropped = word[:position] + word[position + 1 :]
    assert edit_distance(word, swapped) == (word != swapped)
    assert edit_distance(word, dropped) == 1
    assert edit_distance(word, word[:position] + "x" + word[position + 1 :]) == 1


# --- duplicates ---------------------------------------------------------------------------------


def test_alike_shapes_in_different_colours_are_different(tmp_path: Path) -> None:
    for index, color in enumerate(["red", "blue", "green", "gold"]):
        image = Image.new("RGB", (100, 100), "white")
        ImageDraw.Draw(image).ellipse((20, 20, 80, 80), fill=color)
        write_image(tmp_path / f"{index}.png", image, f"{color} {TAG}")
    assert "near-duplicates" not in {finding.rule for finding in findings(tmp_path)}


def test_chains_of_similar_images_are_one_group(tmp_path: Path) -> None:
    healthy(tmp_path)
    for index, quality in enumerate((90, 50, 20)):
        write_image(
            tmp_path / f"v{index}.jpg", encoded(scene(0, (150, 130)), "JPEG", quality=quality)
        )
        (tmp_path / f"v{index}.txt").write_text(f"v{index} {TAG}")
    result = {finding.rule: finding for finding in findings(tmp_path)}
    assert result["near-duplicates"].files == ("0.png", "v0.jpg", "v1.jpg", "v2.jpg")
