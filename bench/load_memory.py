"""How much private memory (RssAnon, Linux only) loading a model takes.

Writes a sparse file with SDXL's tensor names and shapes, whose data read as zeros: the result does
not depend on values. A fresh process loads it, while a thread reads RssAnon, the memory that is not
mapped to a file, a thousand times a second.

    python bench/load_memory.py [sdxl] [BF16]
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STORED = ("F32", "F16", "BF16")
_MEBIBYTE = 2**20


def resident_memory() -> int:
    """Return the process's private memory (RssAnon) in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say RssAnon; use Linux")


def measure(path: str) -> dict[str, float]:
    """Load a model in bfloat16; return its size and peak private memory in MiB, and the seconds."""
    import diffusers
    import torch
    import transformers

    from lorasmith.models.load import load_model

    # Libraries load parts of themselves when a class is first asked for.
    _ = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL
    _ = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    load_model()
    before, peak, finished = resident_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.is_set():
            peak = max(peak, resident_memory())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = load_model(path, torch.bfloat16)
    seconds = time.perf_counter() - start
    finished.set()
    watcher.join()
    networks = (model.unet, model.vae, *model.text_encoders)
    size = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    return {
        "size": size / _MEBIBYTE,
        "after": (resident_memory() - before) / _MEBIBYTE,
        "peak": (peak - before) / _MEBIBYTE,
        "seconds": seconds,
    }


def main() -> None:
    """Write the files one after the other and measure each in a separate process."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    from helpers.published_files import file_shapes, write_sparse

    name = sys.argv[1] if len(sys.argv) > 1 else "sdxl"
    print(f"{name} loaded in bfloat16; MiB of private memory (RssAnon)")
    for dtype in sys.argv[2:] or STORED:
        with tempfile.TemporaryDirectory() as folder:
            path = write_sparse(Path(folder) / "model.safetensors", file_shapes(name), dtype)
            command = [sys.executable, __file__, "--measure", str(path)]
            results = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(
            f"stored as {dtype:4}: weights {results['size']:7.0f}, after {results['after']:7.0f}, "
            f"peak {results['peak']:7.0f} ({results['peak'] / results['size']:.3f} x), "
            f"{results['seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()
