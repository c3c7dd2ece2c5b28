"""Golden runs and images: how they are produced, stored and compared."""

import hashlib
import json
import lzma
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from golden_settings import (
    CLASS,
    DEVICE,
    DRAWN,
    FEATURES,
    NOT_OF_FEATURES,
    OTHER_TAG,
    RUNS,
    SAMPLING,
    SEED,
    SETTINGS,
    TAG,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file

import lorasmith
from lorasmith.cli import run as command
from lorasmith.inference.pipeline import Pipeline
from lorasmith.loops.tracking import read_log

EXPECTED = Path(__file__).parent / "expected"
CPU = EXPECTED / "cpu.json"

Tensors = dict[str, torch.Tensor]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Tiny = Callable[[str], Path]

FIGURES = {"loss": "loss", "held_out": "validation_loss"}
"""What is frozen of a log: names in the frozen results, and in the log."""
VOLATILE = ("modelspec.date", "lorasmith.run", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that differ from run to run, or follow from the tensors."""
WORDS = "metadata"

TOLERANCE, HALF = 1e-4, 2**-10
"""Where another CPU counted: shares of a tensor's largest value, and of each in float16."""
LEAST = 0.01
"""The least that counts as the largest value: some factors never leave zero but for rounding."""
STEPS_OF_GREY = 2

PLACES = ("park", "sea", "sofa", "car", "hut", "tent")
TIMES = ("dawn", "noon", "night", "rain", "snow", "fog")
SHAPES = ((64, 64), (96, 64), (64, 96), (70, 64), (64, 128), (80, 100))

# --- images to learn from -----------------------------------------------------------------------


def pattern(number: int, width: int = 64, height: int = 64) -> Image.Image:
    """Return an image computed from integers only, so that it is the same everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = [(x * (3 + number) + y * (2 + k * number) + x * y // (9 + k)) % 256 for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def mask(number: int, width: int = 64, height: int = 64) -> Image.Image:
    """Return a mask with a white rectangle."""
    grey = np.zeros((height, width), np.uint8)
    grey[8 : height - 12, 4 + 4 * number : width // 2 + 4 * number] = 255
    return Image.fromarray(grey)


def write_scene(root: Path) -> None:
    """Write all images that runs learn from."""
    for name, tag, first, count in (("pictures", TAG, 0, 6), ("others", OTHER_TAG, 10, 5),
                                    ("masked", TAG, 0, 4), ("shapes", TAG, 0, 6)):  # fmt: skip
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            size = SHAPES[number] if name == "shapes" else SHAPES[0]
            pattern(first + number, *size).save(folder / f"{number}.png")
            caption = f"a {tag} {CLASS}, {PLACES[number]}, {TIMES[number]}"
            (folder / f"{number}.txt").write_text(caption)
        if name == "masked":
            for number in range(3):
                mask(number).save(folder / f"{number}.mask.png")
    (root / "class").mkdir()
    for number in range(3):
        pattern(20 + number).save(root / "class" / f"{number}.png")


# --- trainings ------------------------------------------------------------------------------------


def settings_of(name: str, model: Path | str | None, out: str) -> dict[str, Any]:
    """Return all settings of a frozen run as nested dictionaries."""
    run = RUNS[name]
    tree = merged(SETTINGS, run.changes)
    tree["output"]["name"] = out
    tree["model"] = {"path": str(model)} if model else {}
    if run.kind == "features":
        for key in NOT_OF_FEATURES:
            del tree["data"][key]
        tree["feature"] = [dict(feature) for feature in FEATURES]
    return tree


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of settings; lists and optimizer arguments are replaced, not merged."""
    tree = {k: merged(v, {}) if isinstance(v, Mapping) else v for k, v in under.items()}
    for key, value in over.items():
        inner = tree.get(key)
        replaces = key == "optimizer_args" or not isinstance(inner, dict)
        tree[key] = value if replaces else merged(inner, value)
    return tree


def write_settings(name: str, model: Path | str | None, out: str) -> Path:
    """Write a frozen run's settings into the working folder."""
    file = Path(f"{Path(out).name}.toml")
    file.write_text(tomli_w.dumps(settings_of(name, model, out)), encoding="utf-8")
    return file


def command_of(name: str) -> str:
    return "sweep" if RUNS[name].kind == "sweep" else "train"


def train(name: str, tiny_of: Tiny, out: str = "loras/golden") -> list[Path]:
    """Train in the working folder, which has the images; return the LoRA files."""
    family = RUNS[name].family
    file = write_settings(name, tiny_of(family) if family else None, out)
    assert command([command_of(name), str(file)]) == 0
    return files_of(name, out)


def files_of(name: str, out: str) -> list[Path]:
    """Return the LoRA files of a run that has ended."""
    folder = Path(out)
    if RUNS[name].kind == "sweep":
        return sorted(folder.glob("*.safetensors"))
    if RUNS[name].kind == "features":
        return sorted(folder.parent.glob(f"{folder.name}-*.safetensors"))
    return [folder.with_name(f"{folder.name}.safetensors")]


def folders_of(name: str, out: str) -> list[Path]:
    """Return the folders with the logs of a run."""
    folder = Path(out)
    return [folder] if RUNS[name].kind == "train" else sorted(p.parent for p in logs(folder))


def logs(folder: Path) -> list[Path]:
    return list(folder.glob("*/log.jsonl"))


def result(name: str, out: str = "loras/golden") -> tuple[Tensors, dict[str, str]]:
    """Return what is compared of a run: tensors and metadata of its files, and its log values."""
    tensors: Tensors = {}
    record: dict[str, Any] = {}
    files = files_of(name, out)
    for file in files:
        prefix = f"{file.stem}/" if len(files) > 1 else ""
        tensors |= {f"{prefix}{key}": tensor for key, tensor in tensors_in(file).items()}
        with safe_open(file, "pt") as opened:
            words = opened.metadata()
        record[prefix] = {key: value for key, value in words.items() if key not in VOLATILE}
    for folder in folders_of(name, out):
        lines = read_log(folder / "log.jsonl")
        for figure, metric in FIGURES.items():
            values = [line[metric] for line in lines if metric in line]
            if values:
                tensors[f"log/{folder.name}/{figure}"] = torch.tensor(values, dtype=torch.float64)
    for picture in sorted(Path(out).rglob("previews/step-*/*.png")):
        image_key = picture.relative_to(out).with_suffix("").as_posix()
        tensors[f"picture/{image_key}"] = torch.from_numpy(pixels(picture))
    return tensors, {WORDS: json.dumps(record, sort_keys=True)}


@contextmanager
def stopped_at(number: int) -> Iterator[None]:
    """Press Ctrl-C during the ``count``-th optimizer step (from 1)."""
    plain, count = torch.optim.AdamW.step, 0

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGINT)
        return plain(self, closure)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- LoRA files of all kinds, and images --------------------------------------------------------

_BLOCK = "lora_unet_{}_transformer_blocks_0_{}"
_LAST = "up_blocks_3_attentions_2"
LAYERS = {
    _BLOCK.format("mid_block_attentions_0", "attn2_to_k"): (16, 16),
    _BLOCK.format(_LAST, "attn1_to_v"): (8, 8),
    _BLOCK.format(_LAST, "attn2_to_k"): (8, 16),
    _BLOCK.format(_LAST, "attn2_to_v"): (8, 16),
    _BLOCK.format(_LAST, "ff_net_2"): (8, 32),
}
"""Layers of the tiny SD 1.x, and their shapes."""
LAYERS_XL = {
    _BLOCK.format("mid_block_attentions_0", "attn1_to_v"): (16, 16),
    _BLOCK.format("up_blocks_1_attentions_2", "attn2_to_v"): (16, 40),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (16, 16),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": (48, 24),
}
SHAPES_OF: Mapping[str, Callable[[int, int], dict[str, tuple[int, ...]]]] = {
    "lora": lambda out, width: {"lora_down.weight": (2, width), "lora_up.weight": (out, 2)},
    "dora": lambda out, width: {
        "lora_down.weight": (2, width), "lora_up.weight": (out, 2), "dora_scale": (out, 1)},
    "loha": lambda out, width: {
        "hada_w1_a": (out, 2), "hada_w1_b": (2, width),
        "hada_w2_a": (out, 2), "hada_w2_b": (2, width)},
    "lokr": lambda out, width: {
        "lokr_w1": (4, 4), "lokr_w2_a": (out // 4, 2), "lokr_w2_b": (2, width // 4)},
}  # fmt: skip
SIZE = 2.0
"""Of random factors: what they change is seen in a picture."""
GATED = {"lorasmith.tag": TAG, "lorasmith.class": CLASS}


def write_loras(folder: Path) -> Path:
    """Write LoRA files of every kind and gate, with random numbers."""
    folder.mkdir()
    for name, kind, layers, metadata in (
        ("plain", "lora", LAYERS, {}),
        ("gated", "lora", LAYERS, {"lorasmith.gate": "prompt", **GATED}),
        ("token", "lora", LAYERS, {"lorasmith.gate": "token", **GATED}),
        ("token-end", "lora", LAYERS, {"lorasmith.gate": "token+end", **GATED}),
        ("dora", "dora", LAYERS, {}),
        ("loha", "loha", LAYERS, {}),
        ("lokr", "lokr", LAYERS, {}),
        ("sdxl", "lora", LAYERS_XL, {}),
    ):
        generator = torch.Generator().manual_seed(4)
        tensors: Tensors = {}
        for layer, shape in layers.items():
            for key, size in SHAPES_OF[kind](*shape).items():
                tensors[f"{layer}.{key}"] = SIZE * torch.randn(size, generator=generator)
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    return folder


def open_model(model: Path | None, loras: Path) -> Pipeline:
    return lorasmith.load_pipeline(model, DEVICE, torch.float32, loras)


def draw(pipe: Pipeline, name: str) -> Pixels:
    """Draw a golden image."""
    drawing = DRAWN[name]
    options: dict[str, Any] = {}
    if drawing.image:
        options["image"] = pattern(1)
    if drawing.mask:
        options["mask_image"] = mask(1)
    return draw_prompt(pipe, drawing.prompt, **options, **drawing.options)


def draw_prompt(pipe: Pipeline, prompt: str, **more: Any) -> Pixels:
    picture = pipe(prompt, seed=SEED, num_images_per_prompt=1, **{**SAMPLING, **more})[0]
    return np.asarray(picture)


def tensors_in(file: Path) -> Tensors:
    return dict(load_file(file))


def pixels(file: Path) -> Pixels:
    with Image.open(file) as picture:
        return np.array(picture.convert("RGB"))


# --- what is stored -------------------------------------------------------------------------------


def this_cpu() -> dict[str, str]:
    """Return the CPU features on which the last bits of a result depend."""
    features = {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
    }
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    for key in ("vendor_id", "model name", "cpu family", "model", "stepping"):
        features[key] = fields.get(key, "")
    flags = " ".join(sorted(fields.get("flags", "").split()))
    return {**features, "flags": hashlib.sha256(flags.encode()).hexdigest()[:16]}


def bit_for_bit() -> bool:
    """Tell whether this is the kind of CPU that the results were recorded on."""
    return bool(json.loads(CPU.read_text(encoding="utf-8")) == this_cpu())


def store(name: str, tensors: Tensors, words: Mapping[str, str]) -> None:
    """Write the result of a run, packed."""
    contiguous = {key: tensor.contiguous() for key, tensor in sorted(tensors.items())}
    packed = lzma.compress(save(contiguous, dict(words)), preset=9)
    (EXPECTED / f"{name}.safetensors.xz").write_bytes(packed)


def stored(name: str) -> tuple[Tensors, dict[str, str]]:
    """Read the result of a run."""
    plain = lzma.decompress((EXPECTED / f"{name}.safetensors.xz").read_bytes())
    length = int.from_bytes(plain[:8], "little")
    words: dict[str, str] = json.loads(plain[8 : 8 + length])["__metadata__"]
    return load(plain), words


def assert_same(actual: Tensors, expected: Tensors, may_differ_in_dtype: bool = False) -> None:
    """Bit for bit on the recording kind of CPU, to `TOLERANCE` elsewhere."""
    exact = bit_for_bit() and not may_differ_in_dtype
    different = sorted(actual.keys() ^ expected.keys())
    different += [
        key
        for key in actual.keys() & expected.keys()
        if not _agree(actual[key], expected[key], exact)
    ]
    assert not different, f"{len(different)} of {len(expected)} differ: {', '.join(different[:5])}"


def assert_same_pixels(actual: Pixels, expected: Pixels) -> None:
    assert_same({"picture": torch.tensor(actual)}, {"picture": torch.tensor(expected)})


def _agree(actual: torch.Tensor, expected: torch.Tensor, exact: bool) -> bool:
    if actual.shape != expected.shape:
        return False
    if exact:
        return actual.dtype == expected.dtype and torch.equal(actual, expected)
    if expected.dtype == torch.uint8:
        return bool((actual.int() - expected.int()).abs().max() <= STEPS_OF_GREY)
    # A file holds float16 where its values fit, which may turn on the last bit of one of them.
    half = torch.float16 in (actual.dtype, expected.dtype)
    actual, expected = actual.double(), expected.double()
    room = TOLERANCE * max(float(expected.abs().max()), LEAST) + (
        HALF * expected.abs() if half else 0.0
    )
    return bool(((actual - expected).abs() <= room).all())
