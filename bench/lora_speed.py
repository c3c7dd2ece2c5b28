"""Steps per second and memory of `lorasmith train` and of the public recipe, peft with diffusers.

    python bench/lora_speed.py --pairs 7 --out bench/out/speed

Both train rank 16 on all attention projections of the embedded model's U-Net (or of ``--model``),
on the same images and captions, with AdamW, clipping at 1, the same batch size and dtype, in one
process. Blocks of steps alternate, and so does their order; the figure is the median ratio of
neighbouring blocks, which is robust to other load on the machine.

- *recipe*: as published: each step encodes its images and captions.
- *recipe, cached*: the same with latents and text embeddings computed once, as in lorasmith. This
  is the fair comparison, and the one that the target is for.

Memory is measured in a separate process for each: what its steps need on top of the loaded model
(``ru_maxrss`` never falls, so one process cannot measure both).
"""

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lora_quality import machine

from lorasmith.cli.demo.style import DEMO_DATA, TAG
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.device import pick_device
from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.reader import read_rows
from lorasmith.models.load import load_model
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer

AIM = 1.0
RANK, CLIP, RATE, DECAY = 16, 1.0, 2e-3, 0.01
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], Any]


def main() -> None:
    """Run the benchmark, or one memory measurement for it."""
    options = _options()
    if options.memory:
        print(json.dumps({"mib": _memory(options.memory, options)}))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        steps = {name: stack.enter_context(make(options)) for name, make in CONTENDERS.items()}
        blocks, work = _measure(steps, options)
    results = _figures(blocks, options)
    results["median_ratio_of_cpu_seconds"] = _figures(work, options)["median_ratio"]
    results["memory_mib"] = {name: _measure_memory_in_subprocess(name) for name in CONTENDERS}
    results["machine"] = machine()
    _write(results, options.out)


# --- implementations ------------------------------------------------------------------------------


@contextmanager
def lorasmith_steps(options: argparse.Namespace) -> Iterator[Step]:
    """Yield a function that takes one step of `lorasmith train`, data included."""
    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "data": {"path": DEMO_DATA, "tag": TAG, "validation_split": 0.0, "cache": False},
            "output": {"name": f"{folder}/run"},
            "model": {"path": options.model},
            "lora": {"rank": RANK, "targets": "attention"},
            "train": {
                "batch_size": options.batch_size, "learning_rate": RATE, "max_grad_norm": CLIP,
                "weight_decay": DECAY, "mixed_precision": options.precision,
                "device": options.device,
                "lr_scheduler": "constant", "lr_warmup_steps": 0,
            },
        }  # fmt: skip
        with open_trainer(TrainConfig.model_validate(tree), None) as session:
            yield JointTrainStep([session]).step


@contextmanager
def recipe_steps(options: argparse.Namespace) -> Iterator[Step]:
    """Yield one step of the recipe as published."""
    yield _recipe(options, cached=False)


@contextmanager
def cached_recipe_steps(options: argparse.Namespace) -> Iterator[Step]:
    """Yield one step of the recipe with precomputed latents and text embeddings."""
    yield _recipe(options, cached=True)


CONTENDERS = {
    "lorasmith": lorasmith_steps,
    "recipe, cached": cached_recipe_steps,
    "recipe": recipe_steps,
}


@torch.no_grad()
def _recipe(options: argparse.Namespace, cached: bool) -> Step:
    """Prepare the public recipe: peft's adapters in diffusers' U-Net, AdamW, random batches."""
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    device, dtype = pick_device(options.device), DTYPES[options.precision]
    model = load_model(options.model).to(device, dtype)
    unet, vae, encoder = model.unet, model.vae, model.text_encoder
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        init_lora_weights="gaussian",
        target_modules=["to_k", "to_q", "to_v", "to_out.0"],
    )
    unet.add_adapter(config)
    unet.train()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    noises = DDPMScheduler.from_config(model.scheduler_config)
    rows = read_rows(DEMO_DATA)
    pictures = uint8_to_signed(load_square_images(rows, model.default_size)).to(device, dtype)
    ids = model.tokenizer(
        [row.caption for row in rows], max_length=model.tokenizer.model_max_length,
        padding="max_length", truncation=True, return_tensors="pt",
    ).input_ids.to(device)  # fmt: skip

    def encode(batch_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = vae.encode(pictures[batch_rows]).latent_dist.sample() * vae.config.scaling_factor
        return latents, encoder(ids[batch_rows], return_dict=False)[0]

    stored = [encode(torch.tensor([k], device=device)) for k in range(len(rows))] if cached else []
    dataset = [torch.cat(parts) for parts in zip(*stored, strict=True)]

    def step() -> float:
        indices = torch.randperm(len(rows))[: options.batch_size].to(device)
        with torch.no_grad():
            latents, hidden = (part[indices] for part in dataset) if cached else encode(indices)
        noise = torch.randn_like(latents)
        levels = torch.randint(0, noises.config.num_train_timesteps, (len(indices),), device=device)
        noisy = noises.add_noise(latents, noise, levels)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = unet(noisy, levels, hidden, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return torch.enable_grad()(step)


# --- measuring ------------------------------------------------------------------------------------


Blocks = dict[str, list[float]]
"""Seconds per step of every block, in the order in which they were taken."""


def _measure(steps: dict[str, Step], options: argparse.Namespace) -> tuple[Blocks, Blocks]:
    """Return the wall and CPU seconds per step."""
    for step in steps.values():
        _block(step, options.warmup)
    blocks: Blocks = {name: [] for name in steps}
    work: Blocks = {name: [] for name in steps}
    for pair in range(options.pairs):
        for name in steps if pair % 2 == 0 else reversed(steps):
            clock, worked = _block(steps[name], options.steps)
            blocks[name].append(clock)
            work[name].append(worked)
        speeds = "  ".join(f"{name} {1 / blocks[name][-1]:.3f}" for name in steps)
        print(f"pair {pair + 1} of {options.pairs}, steps/s: {speeds}", flush=True)
    return blocks, work


def _block(step: Step, count: int) -> tuple[float, float]:
    """Take steps; return wall and CPU seconds per step."""
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock = (time.perf_counter() - started) / count
    return clock, (time.process_time() - worked) / count


def _figures(blocks: Blocks, options: argparse.Namespace) -> dict[str, Any]:
    ours = blocks["lorasmith"]
    ratios = {
        name: [
            their_time / our_time for their_time, our_time in zip(blocks[name], ours, strict=True)
        ]
        for name in blocks
        if name != "lorasmith"
    }
    return {
        "steps_per_s": {name: 1 / statistics.median(times) for name, times in blocks.items()},
        "ratios": ratios,
        "median_ratio": {name: statistics.median(several) for name, several in ratios.items()},
        "pairs": options.pairs,
        "steps_per_block": options.steps,
        "batch_size": options.batch_size,
        "precision": options.precision,
    }


def _measure_memory_in_subprocess(name: str) -> float | None:
    """Return the memory that one contender's steps need, measured in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    mib: float | None = json.loads(process.stdout.strip().splitlines()[-1])["mib"]
    return mib


def _memory(name: str, options: argparse.Namespace) -> float | None:
    """Return the peak above the loaded model in MiB; None where it cannot be measured."""
    with CONTENDERS[name](options) as step:
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            _block(step, options.warmup)
            return float(torch.cuda.max_memory_allocated() - before) / 2**20
        clear = Path("/proc/self/clear_refs")
        if not clear.exists():
            return None
        ctypes.CDLL(None).malloc_trim(0)  # memory of encoding would hide the memory of steps
        before = _kib("VmRSS")
        clear.write_text("5")  # resets VmHWM, the high-water mark
        _block(step, options.warmup)
        return (_kib("VmHWM") - before) / 1024


def _kib(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) if match else 0


def _write(results: dict[str, Any], out: Path) -> None:
    print(f"\n{'':16}{'steps/s':>10}{'lorasmith is':>14}{'memory MiB':>12}")
    for name, speed in results["steps_per_s"].items():
        ratio = results["median_ratio"].get(name)
        memory = results["memory_mib"][name]
        ratio_text = "" if ratio is None else f"{ratio:.2f} x"
        print(
            f"{name:16}{speed:10.3f}{ratio_text:>14}"
            f"{memory if memory is None else round(memory):>12}"
        )
    reached = results["median_ratio"]["recipe, cached"]
    met = "met" if reached >= AIM else "NOT met"
    print(f"median of {results['pairs']} pairs: {reached:.3f} (target >= {AIM:g}, {met})")
    by_work = results["median_ratio_of_cpu_seconds"]["recipe, cached"]
    print(f"by CPU time instead of wall time: {by_work:.3f} (for a busy machine)")
    path = out / "lora_speed.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(path)


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/out/speed"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="steps in a block")
    parser.add_argument("--warmup", type=int, default=4, help="steps before measuring")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", type=Path, help="a diffusers folder; the embedded model if none")
    parser.add_argument("--memory", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
