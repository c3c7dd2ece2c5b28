"""What every command shares: help with an example, exit codes, one-line errors and warnings."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import lorasmith
from lorasmith.cli import run
from lorasmith.cli.app import app
from lorasmith.core.errors import DataError, LorasmithWarning


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield each command's words, and whether it is a group."""
    inner = getattr(command, "commands", {})
    yield path, bool(inner)
    for name, below in inner.items():
        yield from walk(below, (*path, name))


COMMANDS = list(walk(typer.main.get_command(app)))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replaces ``pretrain vae`` by a function that raises or warns."""
    monkeypatch.setattr("lorasmith.cli.pretrain._run", lambda *_: None)
    return monkeypatch


def vae_that(broken: pytest.MonkeyPatch, problem: Exception | type[BaseException]) -> int:
    def fail(*_: object) -> None:
        raise problem

    broken.setattr("lorasmith.cli.pretrain._run", fail)
    return run(["pretrain", "vae", "x.toml"])


def test_all_commands_are_known() -> None:
    words = {" ".join(path) for path, _ in COMMANDS}
    assert words >= {"generate", "train", "demo", "model info", "pretrain vae", "pretrain unet"}


@pytest.mark.parametrize(("path", "group"), COMMANDS, ids=[" ".join(p) for p, _ in COMMANDS])
def test_help_has_an_example(
    path: tuple[str, ...], group: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "Usage: lorasmith" in captured.out
    if not group:
        text = " ".join(captured.out.replace("`", "").split())
        assert "Example" in text
        assert " ".join(("lorasmith", *path)) in text.split("Example", 1)[1]


def test_no_help_imports_anything_heavy() -> None:
    lines = "; ".join(f"run({[*path, '--help']!r})" for path, _ in COMMANDS)
    code = (
        f"import json, sys\nfrom lorasmith.cli import run\n{lines}\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'numpy'}\n"
        "print('\\n' + json.dumps(sorted(heavy & set(sys.modules))))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.count("Usage: lorasmith") == len(COMMANDS)
    assert json.loads(process.stdout.strip().splitlines()[-1]) == []


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["generate"], ["pretrain", "vae"], ["model", "info", "--frob"],
     ["generate", "x", "--steps", "many"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_version_option_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"lorasmith {lorasmith.__version__}\n"


def test_success_exits_with_0(broken: pytest.MonkeyPatch) -> None:
    assert run(["pretrain", "vae", "x.toml"]) == 0


def test_error_prints_one_line_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "vae", "absent.toml"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: absent.toml: no such settings file\n"


@pytest.mark.parametrize("position", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(
    position: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", "vae", "absent.toml"]
    assert run([*arguments[:position], "--debug", *arguments[position:]]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("ConfigError" in line for line in lines)
    assert lines[-1] == "error: absent.toml: no such settings file"


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (DataError("two\n  lines"), 1, "error: two lines"),
        (
            RuntimeError("tensor\nsizes"),
            1,
            "error: unexpected RuntimeError: tensor (--debug shows where)",
        ),
        (MemoryError(), 1, "error: out of memory; use a smaller batch size or image size"),
        (KeyboardInterrupt, 130, "interrupted"),
        (KeyboardInterrupt("after step 3"), 130, "interrupted: after step 3"),
    ],
)
def test_unexpected_error_is_one_line(
    broken: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    problem: Any, code: int, line: str,
) -> None:  # fmt: skip
    assert vae_that(broken, problem) == code
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_warnings_are_one_line_and_the_command_continues(
    broken: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object) -> None:
        for text in ("look\n  here", "look\n  here"):
            warnings.warn(text, LorasmithWarning, stacklevel=2)
        warnings.warn("not ours", UserWarning, stacklevel=2)

    broken.setattr("lorasmith.cli.pretrain._run", warn)
    before = warnings.showwarning
    assert run(["pretrain", "vae", "x.toml"]) == 0
    assert capsys.readouterr().err == "warning: look here\nwarning: look here\n"
    assert warnings.showwarning is before
