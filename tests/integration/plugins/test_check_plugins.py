"""Caption sources and dataset rules that are registered from outside the package."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from helpers.training.train_commands import sets, train
from lorasmith.cli import run
from lorasmith.data.reading.captions.caption_sources import Caption, ImageContext
from lorasmith.data.reading.row import Row
from lorasmith.data.rules.facts import DatasetFacts, Finding
from lorasmith.registries import CAPTION_SOURCES, DATASET_RULES


def read_json_caption(image: ImageContext) -> Caption | None:
    path = image.find_sibling(".json")
    return None if path is None else Caption((json.loads(path.read_text())["prompt"],))


def find_square_images(facts: DatasetFacts) -> Iterator[Finding]:
    keys = tuple(image.row.key for image in facts.images if image.size[0] == image.size[1])
    if keys:
        yield Finding("square", "advice", f"{len(keys)} images are square", keys)


@pytest.fixture
def json_source() -> Iterator[str]:
    CAPTION_SOURCES.register("json", read_json_caption)
    yield "json"
    CAPTION_SOURCES.unregister("json")


@pytest.fixture
def square_rule() -> Iterator[None]:
    DATASET_RULES.register("square", find_square_images)
    yield
    DATASET_RULES.unregister("square")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images with captions in ``.json`` files and none in text files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, color in enumerate(("red", "lime", "blue", "white")):
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / f"{index}.png")
        caption = {"prompt": f"a {color} cat, inkmono"}
        (folder / f"{index}.json").write_text(json.dumps(caption))
    return folder


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    run(["check", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_check_reads_captions_from_a_registered_source(
    images: Path, json_source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(capsys, str(images), "--tag", "inkmono")
    assert {problem["kind"] for problem in report["problems"]} == {"no-caption"}
    setting = f"data.caption_source={json_source}"
    report = check(capsys, str(images), "--tag", "inkmono", "--set", setting)
    assert (report["problems"], report["usable"], report["tag"]["captions"]) == ([], 4, 4)


def test_train_reads_captions_from_a_registered_source(
    images: Path,
    json_source: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorasmith.training.data import split

    splits = []
    original = split.split_validation

    def spy(rows: list[Row], share: float | None) -> tuple[list[Row], list[Row]]:
        splits.append(rows)
        return original(rows, share)

    monkeypatch.setattr(split, "split_validation", spy)
    assert train(
        tiny_model, images, str(tmp_path / "ink"), "--steps", "1",
        *sets("train.batch_size=1", f"data.caption_source={json_source}"),
    ) == 0  # fmt: skip
    assert [row.caption for row in splits[0]] == [
        f"a {color} cat, inkmono" for color in ("red", "lime", "blue", "white")
    ]


def test_unknown_caption_source_names_the_known_ones(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(images), "--set", "data.caption_source=tx"]) != 0
    error = capsys.readouterr().err
    assert "there is no caption source 'tx'; did you mean 'txt'?" in error


def test_check_runs_a_registered_rule(
    images: Path, json_source: str, square_rule: None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(capsys, str(images), "--set", f"data.caption_source={json_source}")
    findings = {finding["rule"]: finding for finding in report["findings"]}
    assert findings["square"]["message"] == "4 images are square"
    assert len(findings["square"]["files"]) == 4


def test_rule_that_returns_something_else_is_named(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DATASET_RULES.register("texts", lambda facts: ["all images are square"])
    try:
        assert run(["check", str(images), "--tag", "inkmono"]) == 1
    finally:
        DATASET_RULES.unregister("texts")
    error = capsys.readouterr().err
    assert "the dataset rule 'texts' returned 'all images are square'" in error
