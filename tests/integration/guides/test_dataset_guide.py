"""Every command of the dataset guide runs as it stands, on images laid out as it shows them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from helpers.paths import DOCS
from lorasmith.cli import run

GUIDE = DOCS / "datasets.md"
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for block in FENCE.findall(GUIDE.read_text(encoding="utf-8"))
    for line in block.splitlines()
]
QUICK = ["-m", "path/to/model", "--steps", "2", "--set", "train.device=cpu"]


def draw(file: Path, number: int, caption: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96 + 8 * number, 96), (250 - 20 * number, 20 * number, 128))
    pen = ImageDraw.Draw(image)
    (pen.ellipse if number % 2 else pen.rectangle)((8 * number, 8, 60, 30 + 5 * number), "navy")
    image.save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def guide_folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's folders and its model, in the working folder."""
    for number, subject in enumerate(("cat face", "owl on a branch", "boat", "tree", "key")):
        draw(tmp_path / "pictures" / f"{number}.png", number, f"a {subject}, inkmono style")
        draw(tmp_path / "other-dogs" / f"{number}.png", number)
    (tmp_path / "pictures/1.mask.png").write_bytes((tmp_path / "pictures/1.png").read_bytes())
    for number in range(2):
        draw(tmp_path / "dogs/10_sks dog" / f"{number}.png", number)
    draw(tmp_path / "dogs/3_sks dog/c.png", 3, "sks dog asleep on a red sofa")
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path/to/model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dataset_guide_has_commands() -> None:
    assert len(COMMANDS) == 10
    assert all(line.startswith("lorasmith ") for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_dataset_guide_run(
    line: str, guide_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(line)[1:]
    status = run([*arguments, *(QUICK if arguments[0] == "train" else [])])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    if arguments[0] == "train":
        name = arguments[arguments.index("--out") + 1]
        assert (guide_folder / "loras" / f"{name}.safetensors").is_file()
    elif "--json" in arguments:
        assert json.loads(captured.out)["ok"] is True
    else:
        assert "can be used" in captured.out


def test_every_rule_is_explained() -> None:
    from lorasmith.data.reading.problems import KIND_DESCRIPTIONS
    from lorasmith.registries import DATASET_RULES

    table = GUIDE.read_text(encoding="utf-8").partition("| rule |")[2]
    explained = set(re.findall(r"`([a-z-]+)`", table))
    names = set(DATASET_RULES.names()) - {"files"}
    assert {*KIND_DESCRIPTIONS, *names, "all-alike"} <= explained
