"""``lorasmith classify``: the embedded towers, the table, the JSON, the exit status."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from lorasmith.cli import run

DEMO = Path(str(files("lorasmith") / "demo_data"))
NAMES = ("camera", "teapot", "umbrella")
ARGUMENTS = (
    "--labels", "a camera, a teapot, an umbrella", "--template", "{}, noto style",
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(DEMO / f"{name}.png", folder)
    return folder


def test_embedded_towers_tell_emoji_of_the_demo_apart(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["classify", str(pictures), *ARGUMENTS, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["judge"] == "embedded image encoder"
    assert tree["template"] == "{}, noto style"
    assert tree["labels"] == ["a camera", "a teapot", "an umbrella"]
    found = {Path(entry["path"]).stem: entry["label"] for entry in tree["pictures"]}
    assert found == {"camera": "a camera", "teapot": "a teapot", "umbrella": "an umbrella"}
    for entry in tree["pictures"]:
        assert sum(entry["probabilities"].values()) == pytest.approx(1.0)
        assert entry["probabilities"][entry["label"]] == max(entry["probabilities"].values())


def test_table_has_the_pictures_that_can_be_read(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "bad.png").write_bytes(b"nothing")
    monkeypatch.chdir(pictures.parent)
    assert run(["classify", "pictures", *ARGUMENTS]) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines() if ".png" in line]
    assert [row[1] for row in rows] == [f"pictures/{name}.png" for name in NAMES]
    assert all("%" in row[6] for row in rows)  # after the two words of the label and a bar
    assert captured.err.startswith("warning: pictures/bad.png: cannot be decoded")


def test_pictures_that_all_fail_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["classify", str(tmp_path / "absent.png"), *ARGUMENTS, "--json"]
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pictures"][0]["error"].startswith("cannot be read")
    assert "no picture could be read" in captured.err


def test_mistakes_are_one_line_errors(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("--labels", "a dog"), "--labels: give at least two"),
        (("--labels", "a, b", "--template", "x"), "--template: 'x' has no {}"),
        (("--labels", "a, b", "--feature-extractor", str(pictures)), "not a feature extractor"),
    ):
        assert run(["classify", str(pictures), *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert message in line
