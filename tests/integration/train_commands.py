"""Training commands on a tiny model, and what they left behind."""

from pathlib import Path

import pytest

from lorasmith.cli import run


def train(tiny_model: Path, pictures: Path, out: str, *more: str) -> int:
    needed = ["--data", str(pictures), "--tag", "inkmono", "--out", out, "-m", str(tiny_model)]
    return run(["train", *needed, "--set", "train.device=cpu", "--steps", "6", *more])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def files_under(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
