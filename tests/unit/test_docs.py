"""The pages match the code: generated ones are current, commands and settings exist."""

import importlib.util
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.guide_folder import add_loras, set_up
from helpers.paths import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "recipes").rglob("*.md")),
]
PROGRAM = "lorasmith"


def fences(kind: str) -> Iterator[tuple[str, str]]:
    """Yield ``(page, text)`` of every code fence of one kind."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield page.relative_to(REPOSITORY).as_posix(), match[1]


def commands() -> Iterator[tuple[str, str]]:
    """Yield ``(page, command line)`` of every lorasmith command in a ``sh`` fence or in --help."""
    for page, text in fences("sh"):
        for line in text.splitlines():
            if line.startswith(f"{PROGRAM} "):
                yield page, line
    for path, command in generator().leaf_commands():
        for example in re.findall(r"Example: `(.*?)`$", command.help, re.MULTILINE | re.DOTALL):
            yield f"--help of {' '.join(path)}", example


def generator() -> ModuleType:
    """Import docs/generate.py, which is no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", REPOSITORY / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Called(Exception):  # noqa: N818 (not an error: it stops a command after its arguments)
    """Carries the parsed command line out of the parser."""


def understood(line: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Parse a command line as the program does; return the command's path and its arguments.

    Fails where the program would exit 2: unknown command or option, missing or extra argument.
    """
    from typer.main import get_command

    from lorasmith.cli.app import app

    def stopping(path: tuple[str, ...], command: Any) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            stopping((*path, name), inner)
        if not hasattr(command, "commands"):

            def callback(**arguments: Any) -> None:
                raise Called(path, arguments)

            command.callback = callback

    root = get_command(app)
    stopping((), root)
    with pytest.raises(Called) as called:
        root.main(shlex.split(line, comments=True)[1:], prog_name=PROGRAM, standalone_mode=False)
    return called.value.args


@pytest.mark.parametrize("name", ["settings.md", "cli.md"])
def test_generated_pages_are_current(name: str) -> None:
    written = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert written == generator().pages()[name], "run: python docs/generate.py"


def test_every_setting_is_in_the_tables() -> None:
    from lorasmith.config.fields import list_fields

    page = generator().settings_page()
    for run in generator().RUNS.values():
        for name, _, meaning in list_fields(run):
            row = f"| `{name.rpartition('.')[2]}` |"
            assert row in page, name
            assert meaning, f"{name} has no docstring"
    for entry in ("Stage", "RowFilter", "RowWeight"):
        assert f"### {entry}" in page


def test_every_command_is_documented_with_an_example() -> None:
    for path, command in generator().leaf_commands():
        assert "Example: `lorasmith " + " ".join(path) in command.help, path


def test_there_are_commands_to_check() -> None:
    pages = [page for page, _ in commands()]
    assert pages.count("README.md") >= 8
    assert {"docs/quickstart.md", "docs/pretraining.md"} <= set(pages)


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_in_the_pages_are_understood(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasmith.config.features import FeaturesConfig
    from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
    from lorasmith.config.reading.load import load_config
    from lorasmith.config.train_config import TrainConfig

    path, arguments = understood(line)
    kinds: dict[str, Any] = {
        "train": TrainConfig,
        "clip": ClipPretrainConfig,
        "vae": VaePretrainConfig,
        "unet": UnetPretrainConfig,
    }
    if path[-1] not in kinds:
        return
    monkeypatch.chdir(REPOSITORY)
    # Settings files of the repository are read; others are replaced by examples.
    file = arguments.get("config") or arguments.get("run")
    settings = file if file is not None and file.is_file() else None
    base = None if settings else EXAMPLES[path[-1]]
    if page == "docs/features.md":
        load_config(FeaturesConfig, None, arguments["sets"] or [], FEATURES)
    else:
        load_config(kinds[path[-1]], settings, arguments["sets"] or [], base)


TRAIN = {"output_dir": "runs/x", "steps": 10, "batch_size": 8, "learning_rate": 1e-3}
FEATURES = {"feature": [{"tag": "t", "data": "p"}], "output": {"name": "n"}}
EXAMPLES: dict[str, Any] = {
    "train": {"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}},
    "clip": {"data": {"path": "p"}, "train": TRAIN},
    "vae": {"data": {"path": "p"}, "train": TRAIN},
    "unet": {
        "data": {"path": "p"}, "train": TRAIN, "vae": "v", "text_encoder": "c",
        "stages": [{"resolution": 64, "steps": 10}],
    },
}  # fmt: skip


@pytest.mark.parametrize(("page", "text"), list(fences("toml")))
def test_settings_in_the_pages_are_valid(page: str, text: str, tmp_path: Path) -> None:
    from lorasmith.config.reading.load import load_config
    from lorasmith.config.sweep import SweepConfig

    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    command = text.splitlines()[0].removeprefix("# ")  # the first line says whose they are
    load_config({**generator().RUNS, "lorasmith sweep": SweepConfig}[command], file)


def test_page_on_sweeps_names_all_that_may_vary() -> None:
    from lorasmith.config.sweep import SWEEPABLE

    text = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
    table = text.partition("## What may vary")[2].partition("Everything else")[0]
    assert set(re.findall(r"`([\w.]+)`", table)) == set(SWEEPABLE)


def test_configs_of_the_recipe_are_valid_and_name_no_old_keys() -> None:
    from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
    from lorasmith.config.reading.load import load_config
    from lorasmith.core.errors import LorasmithWarning

    parts = {"clip": ClipPretrainConfig, "vae": VaePretrainConfig, "unet": UnetPretrainConfig}
    configs = sorted((REPOSITORY / "recipes").rglob("configs/*.toml"))
    assert len(configs) >= 4
    for config in configs:
        (part,) = set(config.stem.split("_")) & set(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("error", LorasmithWarning)
            load_config(parts[part], config)


@pytest.mark.parametrize(("page", "text"), list(fences("python")))
def test_python_in_the_pages_runs(
    page: str, text: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the examples as they stand, on a tiny model instead of the embedded one."""
    from lorasmith.models import image_encoder
    from lorasmith.models.files import open as model_opening

    assert (
        image_encoder.EMBEDDED == model_opening.EMBEDDED
    )  # imported before the patch: its image tower stays the real one
    set_up(tmp_path, tiny_model, REPOSITORY / page)
    if page != "docs/training.md":  # there they are made
        add_loras(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_opening, "EMBEDDED", tiny_model)
    before = set(tmp_path.rglob("*"))
    exec(compile(text, page, "exec"), {})
    suffixes = {path.suffix for path in set(tmp_path.rglob("*")) - before}
    assert suffixes & {".png", ".safetensors", ".json"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for kind in ("sh", "console"):
        for page, text in fences(kind):
            for target in re.findall(r"^make (\S+)", text, re.MULTILINE):
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), (page, target)


ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
PACKAGE = REPOSITORY / "src" / "lorasmith"


def test_tree_of_the_architecture_has_the_rooms_of_the_package() -> None:
    tree = ARCHITECTURE.read_text(encoding="utf-8").split("```")[1].partition("recipes/")[0]
    drawn = set(re.findall(r"^  (\w+)/|  (demo_\w+)/|, (demo_cook)/", tree, re.MULTILINE))
    names = {name for match in drawn for name in match if name}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert names == rooms


def test_files_that_the_architecture_names_exist() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text.replace(text.split("```")[1], "")))
    named |= set(re.findall(r"\b(\w+\.py)\b", text.split("```")[1]))
    assert len(named) > 60
    files = [f"/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")]
    folders = [f"/{path.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("*/")]
    missing = [n for n in named if not any(p.endswith(f"/{n}") for p in (*files, *folders))]
    assert missing == []
