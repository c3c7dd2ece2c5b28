"""Large datasets and libraries: how long `check`, caching, near-duplicates and many LoRAs take.

    python bench/data_load.py --images 20000 --cached 1000 --out bench/out/data

Generates captioned JPEG files in `--out`, where they stay for the next time, and measures each of
these in a process of its own:

- check: `lorasmith check`, all rules, every image decoded.
- near-duplicates, different: the rule alone, on fingerprints of images that have nothing in common.
- near-duplicates, video: the same on consecutive frames of a slow pan, each like its neighbours.
- cache: encoding `--cached` images with the VAE of the embedded model, into an empty cache.
- cache again: the same with everything cached.
- draw, no library: four images of a prompt without any tag, 20 steps.
- draw, library: the same with a library of `--loras` LoRAs, each with its own tag.

Processor time is that of all threads: on a machine that does other things too it says more than the
seconds. Peak memory is the largest resident memory of the process, libraries included.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_quality import machine
from PIL import Image

import lorasmith
from lorasmith.config.train_config import DataConfig, TrainerConfig
from lorasmith.data.reading.row import Row
from lorasmith.data.rules.duplicates import group_similar_images
from lorasmith.data.scan.image_inspection import ImageInfo
from lorasmith.data.scan.perceptual_hash import fingerprint
from lorasmith.models.load import load_model
from lorasmith.training.data.dataset_builder import build_dataset

TAG = "inkq"
_PAN_STEP = 2
"""Pixels between two frames of the video."""
_SCENE_CELLS = 6
_CELL_SIDE = 24
"""Pixels of the video's picture that one random colour spreads over."""


def main() -> None:
    """Run the benchmark, or one measurement of it."""
    options = _options()
    if options.measure:
        print(json.dumps(_measure(options)))
        return
    make_images(options.out / "images", options.images, options.side)
    make_images(options.out / "cached", options.cached, options.side)
    shutil.rmtree(options.out / "cache", ignore_errors=True)
    rows = [_run(name, options) for name in MEASUREMENTS]
    results = {"machine": machine(), "load": os.getloadavg(), "rows": rows}
    (options.out / "data_load.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("| | images | seconds | processor | peak memory |\n|---|---|---|---|---|")
    for row in rows:
        times = f"{row['seconds']:.1f} | {row['processor_seconds']:.1f} s"
        print(f"| {row['name']} | {row['images']:,} | {times} | {row['peak_mib']:.0f} MiB |")
    print(f"load average at the end: {results['load'][0]:.1f} on {os.cpu_count()} cores")


def make_images(folder: Path, count: int, side: int) -> None:
    """Write images that do not look alike, with captions, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:06}.jpg"
        if not path.is_file():
            random_scene(index, side).save(path, quality=90)
            path.with_suffix(".txt").write_text(f"{TAG}, picture number {index}", encoding="utf-8")


def random_scene(seed: int, side: int) -> Image.Image:
    """Return a square image of soft random colours."""
    cells = (_SCENE_CELLS, _SCENE_CELLS, 3)
    small = np.random.default_rng(seed).integers(0, 256, cells, dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def check_all(options: argparse.Namespace) -> Callable[[], object]:
    """Return the check of all images."""
    return lambda: lorasmith.check(options.out / "images", tag=TAG, resolution=128)


def find_among_different(options: argparse.Namespace) -> Callable[[], object]:
    """Return the search for near-duplicates among images that have nothing in common."""
    images = [_image_info(random_scene(index, 32), index) for index in range(options.images)]
    return lambda: group_similar_images(images)


def find_among_frames(options: argparse.Namespace) -> Callable[[], object]:
    """Return the same among frames of a slow pan over one long picture."""
    frame = 96
    length = frame + _PAN_STEP * options.images
    cells = np.random.default_rng(0).integers(
        0, 256, (frame // _CELL_SIDE, length // _CELL_SIDE, 3), dtype=np.uint8
    )
    long = Image.fromarray(cells).resize((length, frame), Image.Resampling.BICUBIC)
    lefts = range(0, _PAN_STEP * options.images, _PAN_STEP)
    frames = (long.crop((left, 0, left + frame, frame)) for left in lefts)
    images = [_image_info(image, index) for index, image in enumerate(frames)]
    return lambda: group_similar_images(images)


def encode_all(options: argparse.Namespace) -> Callable[[], object]:
    """Return the encoding of images and captions, through the cache."""
    model = load_model()
    folder, cache = options.out / "cached", options.out / "cache"
    data = DataConfig(path=folder, tag=TAG, cache_dir=cache, validation_split=0.0)
    return lambda: build_dataset(model, data, TrainerConfig(), torch.device("cpu"))


def draw_without_library(options: argparse.Namespace) -> Callable[[], object]:
    """Return drawing with no library."""
    pipe = lorasmith.load_pipeline(device="cpu")
    return lambda: pipe("a red apple, noto style", num_images_per_prompt=4)


def draw_with_library(options: argparse.Namespace) -> Callable[[], object]:
    """Return opening a library of LoRAs and drawing without any of their tags."""
    make_loras(options.out / "loras", options.loras)
    pipe = lorasmith.load_pipeline(device="cpu")

    def draw() -> None:
        pipe.load_library(options.out / "loras")
        pipe("a red apple, noto style", num_images_per_prompt=4)

    return draw


def make_loras(folder: Path, count: int) -> None:
    """Write LoRAs that differ by their tags, unless they are there."""
    lora = lorasmith.inject(load_model().unet, rank=8)
    for module in lora.adapters.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.01)
    for index in range(count):
        path = folder / f"lora{index:04}.safetensors"
        if not path.is_file():
            tag = {"lorasmith.gate": "prompt", "lorasmith.tag": f"{TAG}{index:04}"}
            lorasmith.save_lora(lora, path, tag)


def _image_info(image: Image.Image, index: int) -> ImageInfo:
    row = Row(str(index), (TAG,), {}, Path())
    return ImageInfo(row, image.size, str(index), fingerprint(image), False, False)


MEASUREMENTS = {
    "check": check_all,
    "near-duplicates, different": find_among_different,
    "near-duplicates, video": find_among_frames,
    "cache": encode_all,
    "cache again": encode_all,
    "draw, no library": draw_without_library,
    "draw, library": draw_with_library,
}


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", name, "--out", str(options.out)]
    command += ["--images", str(options.images), "--cached", str(options.cached)]
    command += ["--loras", str(options.loras)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    name = options.measure
    action = MEASUREMENTS[name](options)
    start, processor_start = time.perf_counter(), time.process_time()
    action()
    return {
        "name": name,
        "images": _count_images(name, options),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor_start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # KiB on Linux
    }


def _count_images(name: str, options: argparse.Namespace) -> int:
    if name.startswith("draw"):
        return 4
    return int(options.cached if "cache" in name else options.images)


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="how many images to check")
    parser.add_argument("--cached", type=int, default=1000, help="how many images to encode")
    parser.add_argument("--loras", type=int, default=200, help="how many LoRAs the library has")
    parser.add_argument("--side", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--out", type=Path, default=Path("bench/out/data"), help="folder to use")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
