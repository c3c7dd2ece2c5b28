"""Paths that lead to the wrong thing: every command that takes one names it in a line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.cli import run

WRONG = {
    "folder": "folder",
    "text": "file.txt",
    "nothing": "nowhere",
    "below a file": "file.txt/x",
    "cut-off weights": "cut.safetensors",
    "folder of weights' name": "folder.safetensors",
    "folder of settings' name": "folder.toml",
    "long name": "x" * 300,
    "long path": "/".join(["y" * 100] * 60),
    "no such user": "~nobody-of-this-name/x",
    "pipe": "pipe",
}
RARE = ("text", "folder of weights' name", "folder of settings' name", "long path")
UNWRITABLE = {
    "below a file": "file.txt/{}",
    "long name": "x" * 300 + "{}",
    "long path": "/".join(["y" * 100] * 60) + "/{}",
    "not allowed": "/proc/x/{}",
}
READS = {
    "lora info": ("lora", "info", "{}"),
    "lora diff": ("lora", "diff", "LORA", "{}"),
    "lora convert": ("lora", "convert", "{}", "new.safetensors", "--to", "diffusers"),
    "lora merge": ("lora", "merge", "LORA", "{}", "--out", "new.safetensors"),
    "lora resize": ("lora", "resize", "{}", "--rank", "2", "--out", "new.safetensors"),
    "lora extract": ("lora", "extract", "MODEL", "{}", "--rank", "2", "--out", "new.safetensors"),
    "lora fuse": ("lora", "fuse", "MODEL", "{}", "--out", "new"),
    "lora ablate": ("lora", "ablate", "{}", "-m", "MODEL"),
    "model info": ("model", "info", "{}"),
    "model convert": ("model", "convert", "{}", "new"),
    "generate -m": ("generate", "a", "-m", "{}", "--out", "new"),
    "generate --lora": ("generate", "a", "-m", "MODEL", "--lora", "{}", "--out", "new"),
    "generate --library": ("generate", "a", "-m", "MODEL", "--library", "{}", "--out", "new"),
    "generate --image": ("generate", "a", "-m", "MODEL", "--image", "{}", "--out", "new"),
    "check": ("check", "{}"),
    "train": ("train", "{}"),
    "train --data": ("train", "--data", "{}", "--tag", "ink", "--out", "new", "-m", "MODEL"),
    "train -m": ("train", "--data", "DATA", "--tag", "ink", "--out", "new", "-m", "{}"),
    "sweep": ("sweep", "{}"),
    "report": ("report", "{}"),
    "evaluate": ("evaluate", "{}", "-m", "MODEL", "--data", "DATA"),
    "evaluate --data": ("evaluate", "LORA", "-m", "MODEL", "--data", "{}"),
    "pretrain": ("pretrain", "clip", "{}"),
}
WRITES = {
    "lora convert": ("lora", "convert", "LORA", "{}.safetensors", "--to", "diffusers"),
    "lora merge": ("lora", "merge", "LORA", "LORA", "--out", "{}.safetensors"),
    "lora resize": ("lora", "resize", "LORA", "--rank", "2", "--out", "{}.safetensors"),
    "lora fuse": ("lora", "fuse", "MODEL", "LORA", "--out", "{}"),
    "model convert": ("model", "convert", "MODEL", "{}"),
    "generate": ("generate", "a", "-m", "MODEL", "--steps", "1", "--out", "{}"),
    "train": (
        *("train", "--data", "DATA", "--tag", "ink", "-m", "MODEL", "--steps", "1"),
        *("--out", "{}"),
    ),
    "demo": ("demo", "--out", "{}"),
}

Refuses = Callable[[tuple[str, ...], str], str]


@pytest.fixture(scope="module")
def scene(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    make_lora(open_model(tiny_model), folder / "lora.safetensors", {}, 0.1)
    (folder / "file.txt").write_text("hello")
    (folder / "cut.safetensors").write_bytes((folder / "lora.safetensors").read_bytes()[:-9])
    for name in ("folder", "folder.safetensors", "folder.toml", "data"):
        (folder / name).mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (80 * index, 0, 0)).save(folder / "data" / f"{index}.png")
        (folder / "data" / f"{index}.txt").write_text("ink")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    return folder


def list_files(folder: Path) -> list[Path]:
    """List all files; an empty folder for results is no loss."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def refuses(
    scene: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuses:
    """Run a command that must end with one error line; return that."""
    monkeypatch.chdir(scene)
    stands_for = {"MODEL": str(tiny_model), "LORA": "lora.safetensors", "DATA": "data"}

    def refuse(command: tuple[str, ...], path: str) -> str:
        before = list_files(scene)
        arguments = [stands_for.get(word, word.format(path)) for word in command]
        assert run(arguments) in (1, 2)
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert errors == lines[-1:]
        assert "unexpected" not in errors[0]
        assert list_files(scene) == before
        return errors[0]

    return refuse


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind in RARE else kind for kind in WRONG],
)
@pytest.mark.parametrize("command", READS)
def test_wrong_path_to_read_is_named(refuses: Refuses, command: str, kind: str) -> None:
    if kind == "folder of settings' name" and command not in ("train", "sweep", "pretrain"):
        kind = "folder"
    assert WRONG[kind][-20:].rpartition("/")[2] in refuses(READS[command], WRONG[kind])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("command", WRITES)
def test_wrong_path_to_write_is_named(refuses: Refuses, command: str, kind: str) -> None:
    path = UNWRITABLE[kind].format("new")
    assert path[:5] in refuses(WRITES[command], path)


@pytest.mark.parametrize("command", WRITES)
def test_existing_file_is_not_overwritten(refuses: Refuses, scene: Path, command: str) -> None:
    names = {"train": "./lora", "demo": "file.txt", "generate": "file.txt"}
    name = names.get(command, "cut" if ".safetensors" in str(WRITES[command]) else "file.txt")
    before = {path: path.read_bytes() for path in list_files(scene) if path.is_file()}
    assert Path(name).name in refuses(WRITES[command], name)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    "command", ["lora convert", "lora merge", "lora resize", "lora project", "model convert"]
)
def test_file_that_a_run_is_going_to_write_is_not_taken(
    refuses: Refuses, scene: Path, command: str
) -> None:
    """The run would write over it at its end, or when it is resumed."""
    (scene / "unfinished").mkdir(exist_ok=True)
    (scene / "unfinished" / "run.toml").touch()
    project = (
        "lora",
        "project",
        "LORA",
        "--data",
        "DATA",
        "-m",
        "MODEL",
        "--out",
        "{}.safetensors",
    )
    arguments = {**WRITES, "lora project": project}[command]
    arguments = tuple(word.replace("{}.safetensors", "{}") for word in arguments)
    message = refuses(arguments, "unfinished.safetensors")
    assert "the run in unfinished writes this file" in message
    assert not (scene / "unfinished.safetensors").exists()


def test_cache_folder_that_is_a_file_is_named(refuses: Refuses) -> None:
    assert "file.txt" in refuses(("cache", "--dir", "{}"), "file.txt")
