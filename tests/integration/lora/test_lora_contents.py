"""LoRA files that hold more than a LoRA, through the commands."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.lora_files import make_lora
from lorasmith.cli import run
from lorasmith.models.model import Model

EXTRAS = {
    "bundle": ("bundle_emb.my token.clip_l", "bundled with 1 textual inversion embeddings"),
    "norms": ("lora_unet_mid_block_attentions_0_norm.w_norm", "LoRAs that train norms"),
    "aux": ("_aux.0a1b", "no known kind of adapter"),
}


@pytest.fixture(params=EXTRAS)
def lora(request: pytest.FixtureRequest, model: Model, tmp_path: Path) -> tuple[Path, str, str]:
    """A LoRA with something else in it: the file, the key of that, and what is said about it."""
    key, message = EXTRAS[request.param]
    plain = make_lora(model, tmp_path / "plain.safetensors", {"targets": "attention@mid"}, 0.1)
    path = tmp_path / "more.safetensors"
    save_file(load_file(plain) | {key: torch.zeros(16)}, path)
    return path, key, message


def test_more_than_a_lora_is_refused_and_used_where_asked(
    lora: tuple[Path, str, str],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, key, message = lora
    drawing = ["generate", "a dog", "-m", str(tiny_model), "--lora", str(path), "--steps", "1"]
    fusing = ["lora", "fuse", str(tiny_model), str(path)]
    for command in (drawing, fusing):
        out = tmp_path / f"{command[0]}-{command[1]}".replace(" ", "-")
        assert run([*command, "--out", str(out)]) == 1
        err = " ".join(capsys.readouterr().err.split())
        assert key in err
        assert message in err
        assert not list(out.rglob("*.*")), "nothing is written"
        assert run([*command, "--out", str(out), "--allow-mismatch"]) == 0
        assert key in " ".join(capsys.readouterr().err.split())
        assert list(out.rglob("*.*"))


def test_info_lists_what_else_is_in_a_file(
    lora: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, key, _ = lora
    assert run(["lora", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert key in out
    assert "Bundled 1 embeddings" in out or "Unknown 1 " in out


def test_every_command_on_files_has_the_switch(
    lora: tuple[Path, str, str],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, key, _ = lora
    out = str(tmp_path / "out.safetensors")
    commands = (
        ["convert", str(path), out],
        ["merge", str(path), "--out", out],
        ["resize", str(path), "--rank", "2", "--out", out],
        ["diff", str(path), str(path)],
    )
    for command in commands:
        if not key.startswith("bundle_emb."):
            assert run(["lora", *command]) == 1
            assert key in " ".join(capsys.readouterr().err.split())
        assert run(["lora", *command, "--ignore-unknown"]) == 0, command
        capsys.readouterr()
        Path(out).unlink(missing_ok=True)
    ablating = ["lora", "ablate", str(path), "-m", str(tiny_model), "--prompt", "x"]
    assert run([*ablating, "--steps", "1"]) == 1
    assert key in " ".join(capsys.readouterr().err.split())
    assert run([*ablating, "--steps", "1", "--ignore-unknown"]) == 0
