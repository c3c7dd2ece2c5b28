"""Every command of the quick start and the guides runs, page by page and in order."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.guide_folder import add_loras, commands, set_up
from helpers.paths import REPOSITORY
from lorasmith.cli import run

GUIDES = (
    "quickstart.md", "training.md", "loras.md", "tags.md", "prompts.md", "models.md", "features.md",
    "evaluation.md", "inpainting.md", "sweeps.md",
)  # fmt: skip
PAGES = {page: REPOSITORY / "docs" / page for page in GUIDES}
QUICK = {
    "train": [
        "--set", "train.steps=4", "--set", "train.device=cpu",
        "--set", "train.checkpoint_every_n_steps=2",
        "--set", "validation.num_inference_steps=1", "--set", "validation.num_images=1",
        "--set", "validation.every_n_steps=2", "--set", "validation.guidance_scale=1",
    ],
    "sweep": [
        "--set", "train.steps=1", "--set", "train.device=cpu", "--set", "train.batch_size=2",
        "--set", "validation.prompts=[]", "--set", "validation.every_n_steps=2",
        "--set", "validation.loss_timesteps=1",
    ],
    "generate": ["--steps", "1", "-n", "1", "--device", "cpu"],
    "evaluate": ["--steps", "1", "--seeds", "2", "--guidance", "1", "--batch-size", "16"],
    "lora ablate": ["--steps", "1", "--device", "cpu"],
}  # fmt: skip
"""Added to the commands, so that they take no time on a tiny model; settings mean the last."""


REPLACEMENTS = {
    "train": [
        *QUICK["train"], "--set", "validation.num_inference_steps=4", "--set", "train.steps=2",
        "--set", "validation.loss_timesteps=1", "--set", "train.batch_size=2",
    ],
    "generate": [*QUICK["generate"], "--steps", "4"],
}  # fmt: skip
"""Likewise on the page about given pictures: of very few steps none would be left for these."""
OTHER_MODELS = {"inpainting": "sd1-inpainting", "refiner": "sdxl-refiner"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_guides_run(
    page: str, tiny_model: Path, tiny_of: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    set_up(tmp_path, tiny_model, PAGES[page])
    if page in ("loras.md", "tags.md", "prompts.md", "inpainting.md"):
        add_loras(tmp_path)
    quick = {**QUICK, **REPLACEMENTS} if page == "inpainting.md" else QUICK
    for name, family in OTHER_MODELS.items() if page == "inpainting.md" else ():
        (tmp_path / "path" / "to" / name).symlink_to(tiny_of(family))
    monkeypatch.chdir(tmp_path)
    lines = commands(PAGES[page])
    assert len(lines) >= 5
    for line in lines:
        # The shortened runs have no checkpoint of step 100.
        arguments = shlex.split(line.replace("step-100", "step-2"), comments=True)[1:]
        more = quick.get(arguments[0], quick.get(" ".join(arguments[:2]), []))
        if more and "-m" not in arguments:
            more = [*more, "-m", "path/to/model"]
        status = run([*arguments, *more])
        assert status == 0, f"{line}\n{capsys.readouterr().err}"
        _check(line, arguments, tmp_path)


def _check(line: str, arguments: list[str], folder: Path) -> None:
    """Check the command's main result."""
    if "--out" not in arguments or "--print-config" in arguments:
        return
    out = arguments[arguments.index("--out") + 1]
    if arguments[0] == "generate":
        assert (folder / out / "0000.png").is_file(), line
    if arguments[0] == "evaluate":
        assert (folder / out / "evaluation.html").is_file(), line
    if arguments[0] == "sweep":
        assert (folder / "loras" / out / "sweep.html").is_file(), line
    if arguments[0] == "train" and "features.toml" in arguments:
        for tag in ("curlyqx", "cookqz"):
            assert (folder / "loras" / f"{out}-{tag}.safetensors").is_file(), line
            assert (folder / "loras" / out / tag / "report.html").is_file(), line
    elif arguments[0] == "train":
        path = folder / out if "/" in out else folder / "loras" / out
        assert path.with_name(f"{path.name}.safetensors").is_file(), line
        assert (path / "report.html").is_file(), line
