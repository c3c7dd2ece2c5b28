"""A wheel built from the tree carries everything and works where the tree is not."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY

LARGEST = 60 * 2**20
"""The model may have 48 MiB."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("build") is None or find_spec("hatchling") is None,
        reason="building a wheel needs build and hatchling (the dev extra)",
    ),
]


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build without isolation, so nothing is downloaded."""
    out = tmp_path_factory.mktemp("dist")
    result = python(
        "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel_contains_the_files_that_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        notice = next(name for name in names if name.endswith("licenses/NOTICE"))
        assert "CC-BY-4.0" in archive.read(notice).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {"lorasmith/py.typed", "lorasmith/reports/templates/run.html.j2"} <= set(names)
    for part in ("unet", "vae", "text_encoder", "image_tower"):
        inside = [name for name in names if name.startswith(f"lorasmith/embedded/{part}/")]
        assert any(name.endswith(".safetensors") for name in inside), part
    for file in ("model_index.json", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        assert f"lorasmith/embedded/{file}" in names
    assert sum(name.startswith("lorasmith/demo_data/") for name in names) == 24 * 2 + 1
    assert sum(name.startswith("lorasmith/demo_cook/") for name in names) == 12 * 2 + 1
    assert {
        "lorasmith/reports/templates/style.css",
        "lorasmith/reports/templates/evaluation.html.j2",
    } <= set(names)
    strange = [n for n in names if not n.startswith("lorasmith") or "__pycache__" in n]
    assert strange == []
    assert wheel.stat().st_size < LARGEST


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    source = REPOSITORY / "src"
    ours = {p.relative_to(source).as_posix() for p in source.rglob("*.py")}
    assert ours <= carried


def test_installed_wheel_draws_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Only the wheel and its dependencies can be imported: -S leaves out editable installs."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    result = python(*pip, "--target", str(installed), str(wheel))
    assert result.returncode == 0, result.stderr
    dependencies = sysconfig.get_paths()["purelib"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(installed), dependencies]),
        "HF_HUB_OFFLINE": "1",
    }

    location = python(
        "-S", "-c", "import lorasmith; print(lorasmith.__file__)", cwd=empty, env=environment
    )
    assert Path(location.stdout.strip()).is_relative_to(installed)
    command = ["-m", "lorasmith", "generate", "a red apple, noto style"]
    drawn = python(
        "-S", *command, "-n", "1", "--steps", "2", "--device", "cpu", "--out", "apples",
        cwd=empty, env=environment,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert sorted(path.name for path in empty.glob("apples/*")) == ["0000.png", "grid.png"]
    assert (installed / "bin" / "lorasmith").is_file()
