"""Record what `test_golden` compares with: ``python tests/golden/record.py [NAME ...]``.

To be done only where other results are wanted. Names are those of runs, and of pictures with
``picture/`` before them; without any, all are recorded anew.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import golden_runs as golden
import torch
from golden_settings import DRAWN, RUNS
from PIL import Image


def main(names: list[str]) -> None:
    """Record some results, or all."""
    torch.set_num_threads(1)
    golden.EXPECTED.mkdir(exist_ok=True)
    golden.CPU.write_text(json.dumps(golden.this_cpu(), indent=1) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["LORASMITH_CACHE"] = str(root / "cache")
        golden.write_scene(root / "scene")
        os.chdir(root / "scene")
        record_runs(root, names)
        record_pictures(root, names)


def record_runs(root: Path, names: list[str]) -> None:
    """Train, and store the results."""
    for name in RUNS:
        if not names or name in names:
            out = f"loras/{name}/golden"
            golden.train(name, lambda family: tiny(root, family), out)
            golden.store(name, *golden.result(name, out))


def record_pictures(root: Path, names: list[str]) -> None:
    """Draw, and store the pictures."""
    loras = golden.write_loras(root / "kinds")
    for name, drawing in DRAWN.items():
        if not names or f"picture/{name}" in names:
            pipe = golden.open_model(tiny(root, drawing.family) if drawing.family else None, loras)
            picture = Image.fromarray(golden.draw(pipe, name))
            picture.save(golden.EXPECTED / f"{name}.png", optimize=True)


def tiny(root: Path, family: str) -> Path:
    """Return a tiny model, made once."""
    from helpers.tiny_models import make_tiny

    folder = root / "models" / family
    return folder if folder.is_dir() else make_tiny(folder, family)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    main(sys.argv[1:])
