"""The rebuild script, with stand-ins for the commands that it calls: which, in which order."""

import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY

SCRIPT = Path("recipes/embedded_base/rebuild.sh")

# Records its arguments and writes the files that training writes.
LORASMITH = """#!/bin/bash
printf '%s\\t' lorasmith "$@" >> "$CALLS"; echo >> "$CALLS"
[ "$2" = "$FAIL_AT" ] && exit 130
for word in "$@"; do
  case $word in train.output_dir=*)
    mkdir -p "${word#*=}/vae"; echo rows > "${word#*=}/manifest.tsv" ;;
  esac
done
exit 0
"""
PYTHON = """#!/bin/bash
printf '%s\\t' python "$@" >> "$CALLS"; echo >> "$CALLS"
while [ $# -gt 0 ]; do [ "$1" = --out ] && mkdir -p "$(dirname "$2")" && touch "$2"; shift; done
exit 0
"""


class Recipe:
    """A copy of the recipe in an empty folder, and a PATH with stand-ins only."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls_file, self.bin = root, root / "calls", root / "bin"
        recipe = root / SCRIPT.parent
        recipe.mkdir(parents=True)
        for script in (SCRIPT.name, "vae_table.sh"):
            shutil.copy(REPOSITORY / SCRIPT.parent / script, recipe)
        self.bin.mkdir()
        for tool in ("bash", "dirname", "mkdir", "mv", "cp", "cmp", "touch", "rm"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.add("lorasmith", LORASMITH)
        self.add("python", PYTHON)

    def add(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls_file), **variables}
        command = [str(shutil.which("bash")), str(self.root / SCRIPT), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def calls(self) -> list[list[str]]:
        return [line.split("\t")[:-1] for line in self.calls_file.read_text().splitlines()]

    def steps(self) -> list[str]:
        """Name each call by its program and what tells it apart."""
        return [
            f"{c[0]} {c[2]}" if c[0] == "lorasmith" else f"{c[0]} {Path(c[1]).name}"
            for c in self.calls()
        ]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path)


def used(call: list[str]) -> set[str]:
    return {word for word in call if word.startswith("--")}


def options_of(part: str) -> set[str]:
    """Return the options that `lorasmith pretrain PART` has."""
    from typer.main import get_command

    from lorasmith.cli.app import app

    pretrain = get_command(app).commands["pretrain"]  # type: ignore[attr-defined]
    return {name for parameter in pretrain.commands[part].params for name in parameter.opts}


ALL = [
    "python -m", "python build.py", "lorasmith clip", "lorasmith vae", "lorasmith vae",
    "lorasmith unet", "lorasmith unet", "lorasmith vae", "lorasmith unet", "python package.py",
    *["lorasmith vae"] * 5, "lorasmith report",
]  # fmt: skip


def test_rebuild_runs_all_steps_in_order_and_repeats_only_unfinished_ones(recipe: Recipe) -> None:
    recipe.add("npm", "#!/bin/bash\n")
    first = recipe.run()
    assert first.returncode == 0, first.stderr
    assert recipe.steps() == ALL
    assert (recipe.root / "work" / "emoji128.tar").exists()
    manifest = recipe.root / "recipes" / "embedded_base" / "manifest.tsv"
    assert manifest.read_text() == "rows\n"

    tables = [word for word in recipe.calls()[-1] if word.startswith("f")]
    assert tables == [f"{kind}=work/table/{kind}" for kind in ("f4c4", "f4c8", "f8c4", "f8c8")]

    ours = [call for call in recipe.calls() if call[0] == "lorasmith"]
    assert all(used(call) <= options_of(call[2]) for call in ours)

    second_run = recipe.run()
    assert second_run.returncode == 0, second_run.stderr
    assert recipe.steps() == ["python package.py", "lorasmith report"]


def test_rebuild_without_npm_stops_with_a_message(recipe: Recipe) -> None:
    result = recipe.run()
    assert result.returncode == 1
    assert result.stderr.startswith("error: npm is needed")
    assert recipe.calls() == []


def test_interrupted_training_is_resumed(recipe: Recipe) -> None:
    (recipe.root / "pack.tar").touch()
    stopped = recipe.run("--data", "pack.tar", FAIL_AT="vae")
    assert stopped.returncode == 130
    assert recipe.steps() == ["lorasmith clip", "lorasmith vae"]
    assert "--resume" not in recipe.calls()[-1]

    checkpoint = recipe.root / "work/vae/checkpoints/step-00000010/manifest.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert recipe.run("--data", "pack.tar").returncode == 0
    vae, decoder, unet, longer, vae_finish, finish = recipe.calls()[:6]
    assert "--resume" in vae
    assert "--resume" not in decoder
    assert "train.start_from=work/vae" in decoder
    assert unet[2] == longer[2] == "unet"
    assert "train.start_from=work/unet" in longer
    assert "train.start_from=work/vae_decoder" in vae_finish
    assert {"train.start_from=work/unet_longer", "vae=work/vae_both"} <= set(finish)


def test_parts_trained_on_different_rows_are_refused(recipe: Recipe) -> None:
    (recipe.root / "pack.tar").touch()
    assert recipe.run("--data", "pack.tar").returncode == 0
    (recipe.root / "work/vae/manifest.tsv").write_text("other rows\n")
    result = recipe.run("--data", "pack.tar")
    assert result.returncode == 1
    assert "work/vae was trained on other rows than work/clip" in result.stderr
    assert recipe.calls() == []


def test_settings_of_every_training_are_known_keys(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
    from lorasmith.config.reading.load import load_config

    (recipe.root / "src/lorasmith/demo_data").mkdir(parents=True)
    result = recipe.run(
        "--toy",
        LORASMITH_RECIPE_SET="train.seed=9",
        LORASMITH_RECIPE_SET_UNET_LONGER="min_snr_gamma=1",
    )
    assert result.returncode == 0, result.stderr
    assert recipe.steps() == ALL[2:10]
    monkeypatch.chdir(REPOSITORY)
    kinds = {"clip": ClipPretrainConfig, "vae": VaePretrainConfig, "unet": UnetPretrainConfig}
    for _, _, part, config, *options in recipe.calls()[:7]:
        sets = [word for word in options if word != "--set"]
        run = load_config(kinds[part], Path(config), sets)
        assert run.train.seed == 9
        assert run.train.device == "cpu"
        assert run.data.filters == type(run.data.filters)()
        if config.endswith("unet_longer.toml"):
            assert run.min_snr_gamma == 1.0
    assert not (recipe.root / "src/lorasmith/embedded").exists()
