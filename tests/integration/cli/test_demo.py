"""The command ``demo``, in this process."""

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.training.train_commands import list_files
from lorasmith.cli import run


@pytest.mark.slow
def test_demo_runs_twice(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from lorasmith.cli.demo import style, triggers

    for half in (style, triggers):
        monkeypatch.setattr(half, "_SAMPLING_STEPS", 1)
    out = tmp_path / "demo"
    for _ in range(2):
        assert run(["demo", "--out", str(out), "-m", str(tiny_model), "--steps", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    printed = captured.out.splitlines()
    assert printed[: len(printed) // 2][0] == "1/5 generating 8 images with the base model"
    assert [line[:3] for line in printed if not line.startswith(" ")] == [
        "1/5", "2/5", "3/5", "4/5", "5/5", "try",
    ] * 2  # fmt: skip
    files = list_files(out)
    assert [name for name in files if "/" not in name] == [
        "base.png", "cookqz.safetensors", "inkmono.png", "inkmono.safetensors", "metrics.json",
        "report.html", "tags.png", "taught.png",
    ]  # fmt: skip
    assert {"inkmono/run.toml", "inkmono/log.jsonl", "inkmono/summary.json"} <= set(files)
    assert (out / "report.html").read_text() == (out / "inkmono/report.html").read_text()
    with Image.open(out / "inkmono.png") as grid:
        assert grid.width > 8 * 64
        assert grid.height > 3 * 64
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == [
        "training", "base", "with_tag", "without_tag", "taught", "tags", "seconds",
    ]  # fmt: skip
    assert metrics["tags"]["exact"] is True
    assert metrics["tags"]["gated"] == 0.0
    assert set(metrics["tags"]["plain"]) == {"inkmono", "cookqz"}
    assert all(ratio > 0 for ratio in metrics["tags"]["plain"].values())
    with Image.open(out / "tags.png") as grid:
        assert grid.width > 4 * 64
        assert grid.height > 3 * 64
    assert metrics["taught"]["saturation"] == 0.0
    assert set(metrics["with_tag"]) == {"saturation", "two_tone"}
    assert metrics["training"]["steps"] == 2
    assert metrics["training"]["pictures"] == 22
    assert metrics["training"]["validation_loss_over_base"] > 0
    assert str(tmp_path) not in (out / "metrics.json").read_text()


def test_demo_keeps_files_of_the_user(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "inkmono").mkdir()
    (tmp_path / "inkmono" / "mine.txt").write_text("mine")
    assert run(["demo", "--out", str(tmp_path), "-m", str(tiny_model), "--steps", "1"]) == 1
    assert (tmp_path / "inkmono" / "mine.txt").read_text() == "mine"


def test_demo_images_are_complete_and_differ_from_the_drawn_concepts() -> None:
    from lorasmith.cli.demo.style import CONCEPTS, DEMO_DATA, TAG
    from lorasmith.core.text.trigger_word import contains_tag
    from lorasmith.data.reading.reader import read_rows

    rows = read_rows(DEMO_DATA)
    assert len(rows) == 24
    assert all(contains_tag(row.caption, TAG) for row in rows)
    taught = {row.caption.rpartition(",")[0] for row in rows}
    assert taught.isdisjoint(CONCEPTS)
    assert "Copyright (c) Microsoft Corporation" in (DEMO_DATA / "ATTRIBUTION.txt").read_text()
    for row in rows:
        with Image.open(row.path) as picture:
            assert picture.size == (128, 128)


def test_cooks_are_complete_and_their_tag_is_in_every_caption() -> None:
    from lorasmith.cli.demo.triggers import CLASS_WORD, COOK_DATA, COOK_TAG
    from lorasmith.data.reading.reader import read_rows

    rows = read_rows(COOK_DATA)
    assert len(rows) == 12
    assert all(f"{COOK_TAG} {CLASS_WORD}" in row.caption for row in rows)
    assert "Copyright (c) Microsoft Corporation" in (COOK_DATA / "ATTRIBUTION.txt").read_text()
