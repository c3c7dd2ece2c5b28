"""Record what `test_old_runs` opens: ``python tests/golden/record_old.py``.

It was done once and is not to be done again: what it stores is worth keeping because it is old. It
stays as the description of what is stored.
"""

import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import golden_old as old
import golden_runs as golden
import torch
from golden_settings import TAG
from PIL import Image

from lorasmith.cli import run

_NEEDLESS = ("report.html", "sweep.html")
_RUNS_OF_LORAS = {"plain": "sd1", "gated": "token-gate", "compensated": "compensated"}


def main() -> None:
    """Record stopped runs and LoRA files."""
    torch.set_num_threads(1)
    old.PACKED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["LORASMITH_CACHE"] = str(root / "cache")
        for name in old.STOPPED:
            record_stopped(root / name, name)
        record_loras(root / "loras")


def record_stopped(folder: Path, name: str) -> None:
    """Stop a run, and pack its folder."""
    from helpers.tiny_models import make_tiny

    golden.write_scene(folder)
    os.chdir(folder)
    make_tiny(Path("model"))
    settings = old.STOPPED[name]
    file = golden.write_settings(settings.name, "model", old.OUT)
    with golden.stopped_at(settings.stop):
        assert run([settings.command, str(file)]) == 130
    pack(name, folder, "loras")


def record_loras(folder: Path) -> None:
    """Train LoRAs to the end, and pack their files with the pictures that they draw."""
    from helpers.tiny_models import make_tiny

    golden.write_scene(folder)
    os.chdir(folder)
    model = make_tiny(Path("model"))
    Path("kept").mkdir()
    for name, of in _RUNS_OF_LORAS.items():
        shutil.copy(golden.train(of, lambda family: model)[0], f"kept/{name}.safetensors")
        shutil.rmtree("loras")
    file = golden.write_settings("sd1", "model", old.OUT)
    assert run(["train", str(file), "--set", "lora.targets=text-encoder"]) == 0
    shutil.copy(f"{old.OUT}.safetensors", "kept/text.safetensors")
    pack("loras", folder, "kept")
    pipe = golden.open_model(model, Path("kept"))
    for name in old.LORAS:
        drawn = golden.draw_prompt(pipe, f"a {TAG} person, sea <lora:{name}:3>")
        Image.fromarray(drawn).save(golden.EXPECTED / f"old-{name}.png", optimize=True)


def pack(name: str, root: Path, folder: str) -> None:
    """Pack a folder without what is written anew anyway, the same for the same files."""
    files = sorted(p for p in (root / folder).rglob("*") if p.is_file())
    with tarfile.open(old.PACKED / f"{name}.tar.xz", "w:xz", preset=9) as packed:
        for file in files:
            if file.name not in _NEEDLESS:
                content = file.read_bytes()
                entry = tarfile.TarInfo(file.relative_to(root).as_posix())
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    main()
