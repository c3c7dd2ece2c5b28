"""Names, captions and metadata that would steer a terminal are shown as text by every command."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.lora_files import make_lora
from helpers.paths import REPOSITORY
from helpers.reports.run_folders import write_run
from helpers.tiny_models import open_model
from lorasmith.cli import run
from lorasmith.cli.log_handler import log_to_terminal
from lorasmith.core.text.console import SafeConsole
from lorasmith.core.text.terminal import escape_control_characters
from lorasmith.loops.progress import progress_bar

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066[/x][bold]:smile:"
"""Sets a title, clears the screen, turns the direction of writing, and is rich's markup."""
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066[/x][bold]:smile:"
NASTY_NAME = f"a{NASTY}b"
"""As a path: a folder within another."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OF_SPINNERS = re.compile(r"\x1b\[(\?25[hl]|2K|1A)|\r")
"""What rich writes on standard error while a command waits."""

Shows = Callable[..., str]


@pytest.fixture(params=[False, True], ids=["file", "colours"])
def shows(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shows:
    """Run a command and return what it wrote, which nothing but colours may steer."""
    monkeypatch.setenv("COLUMNS", "2000")
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")

    def show(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert run(list(arguments)) == status
        captured = capsys.readouterr()
        written = _COLOURS.sub("", captured.out + _OF_SPINNERS.sub("", captured.err))
        assert written == escape_control_characters(written, kept="\n")
        return written

    return show


@pytest.fixture(scope="module")
def loras(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files whose names and metadata are nasty."""
    model, folder = open_model(tiny_model), tmp_path_factory.mktemp("loras")
    paths = []
    for seed in (1, 2):
        path = make_lora(
            model, folder / f"{NASTY_NAME}{seed}.safetensors", {}, 0.1, seed, tag=f"ink{NASTY}"
        )
        save_file(load_file(path), path, {"modelspec.trigger_phrase": f"{NASTY}{seed}", NASTY: "x"})
        paths.append(path)
    return paths


def test_info_shows_metadata_as_text(loras: list[Path], shows: Shows) -> None:
    written = shows("lora", "info", str(loras[0]))
    assert written.count(SHOWN) >= 3  # the path, the tag, the metadata
    assert "[/x][bold]" in written


def test_json_escapes_what_steers_and_is_read_back(loras: list[Path], shows: Shows) -> None:
    tree = json.loads(shows("lora", "info", str(loras[0]), "--json"))
    assert NASTY in tree["metadata"]
    assert tree["file"] == str(loras[0])


def test_diff_shows_metadata_as_text(loras: list[Path], shows: Shows) -> None:
    assert SHOWN in shows("lora", "diff", *map(str, loras))


def test_unreadable_tensor_names_are_shown_as_text(
    loras: list[Path], tmp_path: Path, shows: Shows
) -> None:
    tensors = load_file(loras[0])
    path = tmp_path / "x.safetensors"
    save_file(tensors | {f"{NASTY}.lora_up.weight": torch.ones(4, 4)}, path)
    assert "owned" in shows("lora", "info", str(path), status=1)


def test_check_shows_names_and_captions_as_text(tmp_path: Path, shows: Shows) -> None:
    folder = tmp_path / "[" / "x][bold]"  # control characters in a path of settings are refused
    folder.mkdir(parents=True)
    nasty = NASTY.replace("/", "")
    for index, name in enumerate((f"0{nasty}", "1", "2")):
        Image.new("RGB", (80, 80), (90 * index, 0, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"ink{NASTY} {index}", encoding="utf-8")
    (folder / f"{nasty}.jpg").write_bytes(b"no picture")
    written = shows("check", str(folder), "--tag", "[/x]", status=1)
    assert r"\x1b]0" in written  # in a narrow column
    assert "[/x][bold]" in written
    tree = shows("check", str(folder), "--json", status=1)
    assert json.loads(tree[: tree.rindex("}") + 1])["path"] == str(folder)
    assert SHOWN in shows("check", str(tmp_path / NASTY_NAME), status=1)


@pytest.mark.parametrize(
    "prompt", [f"<lora:{NASTY}>", f"a <lora:x:{NASTY}>", f"{NASTY} (a:{NASTY}:9999)", f"[{NASTY}|"]
)
def test_errors_of_generate_are_shown_as_text(
    tiny_model: Path, tmp_path: Path, shows: Shows, prompt: str
) -> None:
    arguments = ["--out", str(tmp_path / NASTY_NAME), "-m", str(tiny_model)]
    assert "error: " in shows("generate", prompt, *arguments, status=1)


def test_models_show_names_as_text(tiny_model: Path, tmp_path: Path, shows: Shows) -> None:
    folder = tmp_path / NASTY_NAME
    shutil.copytree(tiny_model, folder)
    shows("model", "info", str(folder))
    config = folder / "scheduler" / "scheduler_config.json"
    tree = json.loads(config.read_text()) | {"_class_name": NASTY, "beta_schedule": NASTY}
    config.write_text(json.dumps(tree))
    assert SHOWN in shows("model", "info", str(folder), status=run(["model", "info", str(folder)]))
    shows("model", "info", str(tmp_path / f"{NASTY}.safetensors"), status=1)


def test_report_shows_names_as_text(tmp_path: Path, shows: Shows) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / NASTY_NAME).parent.mkdir()
    folder = folder.rename(tmp_path / NASTY_NAME)
    assert SHOWN in shows("report", str(folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert "<script>alert" not in page
    (folder / "run.toml").write_text(f"{NASTY!r} = 1", encoding="utf-8")
    assert "error: " in shows("report", str(folder), status=1)


def test_cache_and_options_are_shown_as_text(tmp_path: Path, shows: Shows) -> None:
    assert SHOWN in shows("cache", "--dir", str(tmp_path / NASTY_NAME))
    assert "owned" in shows("generate", "a", f"--no-such{NASTY}", status=2)
    assert "owned" in shows(NASTY, status=2)
    assert "owned" in shows(
        *("train", "--set", f"train.{NASTY}=1", "--data", "x", "--tag", "x", "--out", "x"), status=1
    )


def test_progress_bars_show_notes_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = SafeConsole(force_terminal=True, width=300, legacy_windows=False)
    with progress_bar(NASTY, 2, console=console) as advance:
        advance(1, NASTY)
    written = capsys.readouterr().out
    assert "\x1b]0;" not in written
    assert "\x1b[2J" not in written
    assert "\u202e" not in written
    assert written.count(SHOWN) >= 2


def test_logs_of_all_libraries_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_terminal():
        for name in ("lorasmith.models", "diffusers.models", "PIL"):
            handler = logging.StreamHandler()
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).warning("config %s\n%s", NASTY, "x" * 300)
            logging.getLogger(name).removeHandler(handler)
    written = capsys.readouterr().err
    assert written.count(SHOWN) == 4
    assert written == escape_control_characters(written, kept="\n")


def test_endless_names_are_shortened(shows: Shows) -> None:
    assert len(shows("lora", "info", f"{'x' * 200}/" * 1000, status=1)) < 2100
    assert len(shows("generate", "(a:" + "1" * 100_000 + ")", status=1)) < 2100


@pytest.mark.parametrize("argument", ["a\0b", "caf\udce9.safetensors"])
def test_argument_that_is_no_text_is_refused(shows: Shows, argument: str) -> None:
    assert "error: " in shows("lora", "info", argument, status=1)


def test_all_text_leaves_at_one_place() -> None:
    package = REPOSITORY / "src" / "lorasmith"
    writes = re.compile(r"typer\.echo\(|\bConsole\(|^\s*print\(|std(out|err)\.write\(", re.M)
    modules = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if writes.search(re.sub(r'"""(.|\n)*?"""', "", path.read_text(encoding="utf-8")))
    }
    assert modules == {
        "cli/output.py"
    }  # and core/text/console.py, whose class cleans what it renders
