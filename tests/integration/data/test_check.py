"""``lorasmith check``: the table, the JSON, the exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import lorasmith
from lorasmith.cli import run
from lorasmith.core.errors import ConfigError

COLOURS = ("red", "blue", "green", "gold", "black", "purple")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve images of different shapes, colours, sizes and captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        width, height = (300, 300) if index % 2 else (400, 220)
        image = Image.new("RGB", (width, height), (20 * index, 255 - 20 * index, 128))
        pen = ImageDraw.Draw(image)
        box = (10 + 9 * index, 20, 100 + 12 * index, 60 + 12 * index)
        (pen.ellipse, pen.rectangle, pen.chord)[index % 3](
            box, *((30, 200) if index % 3 == 2 else ()), fill=COLOURS[index % 6]
        )
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"shape {index} in {COLOURS[index % 6]}, inkmono")
    return folder


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    status = run(["check", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def rules(tree: dict[str, Any]) -> set[str]:
    return {finding["rule"] for finding in tree["findings"]}


def test_json_reports_what_training_would_use(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "3.mask.png").write_bytes((dataset / "3.png").read_bytes())
    status, tree, error = checked(
        capsys, str(dataset), "--tag", "inkmono", "--resolution", "256",
        "--set", "data.max_aspect_ratio=1.8",
    )  # fmt: skip
    assert (status, error) == (0, "")
    assert tree["ok"] is True
    assert (tree["pictures"], tree["usable"], tree["masks"], tree["resolution"]) == (12, 12, 1, 256)
    assert tree["sizes"] == [
        {"width": 300, "height": 300, "pictures": 6},
        {"width": 400, "height": 220, "pictures": 6},
    ]
    buckets = {(use["width"], use["height"]): use for use in tree["buckets"]}
    assert buckets[256, 256]["pictures"] == 6
    assert sum(use["pictures"] for use in tree["buckets"]) == 12
    assert all(use["width"] % 64 == 0 and use["height"] % 64 == 0 for use in tree["buckets"])
    assert max(use["width"] / use["height"] for use in tree["buckets"]) <= 1.8
    assert tree["tag"] == {"tag": "inkmono", "captions": 12, "missing": [], "company": ["shape"]}
    assert rules(tree) == {"tag-company"}
    assert tree["variety"]["distance"] > tree["variety"]["threshold"]


def test_errors_exit_1_after_the_full_report(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "0.png").write_bytes(b"")
    (dataset / "1.txt").unlink()
    status, tree, error = checked(capsys, str(dataset), "--tag", "inkmono")
    assert status == 1
    assert tree["ok"] is False
    assert {"empty-file", "no-caption"} <= rules(tree)
    assert {problem["file"] for problem in tree["problems"]} == {"0.png", "1.png"}
    assert error.strip().endswith("no-caption, empty-file; 10 of 12 images can be used")
    assert run(["check", str(dataset)]) == 1
    assert "0 bytes" in capsys.readouterr().out


def test_warnings_and_advice_exit_0(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "0.txt").write_text("something else")
    (dataset / "1.png").write_bytes((dataset / "2.png").read_bytes())
    status, tree, error = checked(capsys, str(dataset), "--tag", "inkmono")
    assert (status, error) == (0, "")
    assert {"tag-missing", "duplicates"} <= rules(tree)


def test_images_that_are_all_alike_are_advice(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(dataset / "5.png") as image:
        for index in range(12):
            image.crop((index, 0, 280 + index, 290)).save(dataset / f"{index}.png")
    status, tree, _ = checked(capsys, str(dataset), "--tag", "inkmono")
    assert status == 0
    alike = next(finding for finding in tree["findings"] if finding["rule"] == "all-alike")
    assert alike["severity"] == "advice"
    assert "add other views" in alike["message"]


def test_check_prints_a_readable_table(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "3.txt").write_text("a shape, inkmnoo")
    assert run(["check", str(dataset), "--tag", "inkmono"]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "12 of 12 can be used" in text
    assert "'inkmono' in 11 of 12 captions" in text
    assert any("128x128" in line and "12" in line for line in lines)
    assert "tag-spelling" in text
    assert "'inkmnoo', which is nearly the tag" in text
    assert max(map(len, lines)) <= 120


def test_check_without_a_tag_reports_words_that_could_be_the_tag(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(dataset)]) == 0
    text = capsys.readouterr().out
    assert "words in every caption: 'shape', 'inkmono'" in text
    assert "tag-" not in text


def test_class_images_need_no_captions(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in dataset.glob("*.txt"):
        text.unlink()
    status, tree, _ = checked(capsys, str(dataset))
    assert (status, rules(tree) & {"no-caption"}) == (1, {"no-caption"})
    status, tree, _ = checked(capsys, str(dataset), "--caption", "a shape")
    assert (status, tree["captions"]) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such data folder or packed file"),
        ([".", "--resolution", "100"], "resolution: 100 is not a multiple of 64; use 128"),
        ([".", "--model", "nowhere"], "nowhere"),
        ([".", "--tag", "a,b"], "a tag has no comma"),
        (["."], "no images found"),
    ],
)
def test_mistakes_are_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["check", *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_nothing_is_written(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [dataset, *dataset.rglob("*")]
        return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}

    before = state()
    assert run(["check", str(dataset), "--tag", "inkmono"]) == 0
    assert state() == before


def test_python_returns_what_the_command_prints(
    dataset: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "3.txt").unlink()
    _, tree, _ = checked(
        capsys, str(dataset), "--tag", "inkmono", "--set", "data.max_aspect_ratio=1.8", "-m",
        str(tiny_model),
    )  # fmt: skip
    report = lorasmith.check(dataset, tag="inkmono", model=tiny_model, max_aspect_ratio=1.8)
    assert json.loads(json.dumps(report.to_dict())) == tree
    assert [finding.rule for finding in report.errors] == ["no-caption"]
    assert lorasmith.check(str(dataset), caption="a thing", resolution=256).errors == []
    run = {
        "data": {"path": str(dataset), "tag": "inkmono", "max_aspect_ratio": 1.8},
        "model": {"path": str(tiny_model)}, "output": {"name": "none"},
    }  # fmt: skip
    assert lorasmith.check(run).to_dict() == report.to_dict()


def test_check_of_a_features_file_in_python_names_the_right_function(
    dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'[[feature]]\ntag="inkmono"\ndata="{dataset}"\n[output]\nname="none"\n')
    with pytest.raises(ConfigError, match=r"use lorasmith\.check_features"):
        lorasmith.check(file)
    with pytest.raises(ConfigError, match="tag, caption and data settings go with a folder"):
        lorasmith.check(file, tag="inkmono")
    assert list(lorasmith.check_features(file).reports) == ["inkmono"]
    with pytest.raises(ConfigError, match=r"use lorasmith\.check$"):
        lorasmith.check_features({"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}})
    with pytest.raises(ConfigError, match=r"resolutoin.*did you mean resolution"):
        lorasmith.check(dataset, resolutoin=256)
