"""Training speed of full-size models on a GPU: lorasmith and the public diffusers + peft recipe.

    python bench/train_speed.py --models sd15 sdxl --batches 1 4 8 16 --out bench/out/train_speed

Rank 16 on every linear layer of the U-Net's transformers, bfloat16 frozen weights, float32
adapters, AdamW, clipping at 1; random weights of the published sizes, latents and text embeddings
computed beforehand. Measured one after the other in one process: milliseconds per step (median),
images per second, peak memory, and operations per second, counted as two forward passes of the
U-Net per image, as a share of what a large bfloat16 matrix product reaches on the same GPU.

- lorasmith: the steps of `lorasmith train`, with `train.compile = "off"`.
- compiled: the same with `train.compile = "on"`.
- fp8: the same as lorasmith with `train.fp8 = true`.
- recipe: peft's adapters in diffusers' U-Net, under autocast, as in the public example.
- memory: lorasmith within `--memory`, at batch size 1.
- four: four LoRAs in one shared pass, one image each, compared with one of them alone.
- run, run-fp8: a full `lorasmith train` on `--photos`, data included. Both use the same images and
  noise, so their losses show the effect of FP8.

Each result is written as soon as it is measured, so a stopped benchmark keeps what it has.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from full_size import SIDE, TFLOP, Inputs, SyntheticRun, adapters, make_unet, scheduler, write_model
from lora_quality import machine

from lorasmith.loops.memory import limit_gpu_memory
from lorasmith.training.acceleration.execution_plan import ExecutionPlan
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.step.gating import GateRouting

RANK, CLIP, RATE = 16, 1.0, 1e-4
Step = Callable[[], Any]
Row = dict[str, Any]
SIZE = 8192


def main() -> None:
    """Run the selected benchmarks."""
    options = _options()
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    ceiling = _ceiling(device, options.tiny)
    results = {"machine": machine(), "ceiling_tflops": ceiling}
    print(f"a bfloat16 product reaches {ceiling:.0f} TFLOP/s", flush=True)
    rows: list[Row] = []
    for row in _rows(options, device):
        rows.append(row)
        print(_describe(row, ceiling), flush=True)
        text = json.dumps({**results, "rows": rows}, indent=1)
        (options.out / "train_speed.json").write_text(text + "\n", encoding="utf-8")
    print(table(rows, ceiling))


def _rows(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    for name in options.models:
        for method in options.methods:
            measure, batches = METHODS[method], options.batches
            if method in ("memory", "four"):
                batches = [1]
            elif method.startswith("run"):
                batches = [options.run_batch]
            for batch in batches:
                row = {"model": name, "method": method, "batch": batch}
                try:
                    yield row | measure(name, batch, options, device)
                except torch.OutOfMemoryError:
                    yield row | {"error": "out of memory"}
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()


# --- methods --------------------------------------------------------------------------------------


def _lorasmith(
    name: str, batch: int, options: argparse.Namespace, device: torch.device, **train: Any
) -> Row:
    """Measure steps of a lorasmith run."""
    unet = make_unet(name, device, torch.bfloat16, options.tiny)
    trainable = adapters(name, unet, RANK)
    inputs = Inputs(name, unet, batch, side=options.side)
    run = SyntheticRun(name, unet, trainable, inputs, GateRouting(trainable.attached.gate), **train)
    plan = ExecutionPlan(
        device.type == "cuda",
        compile_blocks=train.get("compile") == "on",
        fp8=bool(train.get("fp8")) and device.type == "cuda",
    )
    torch._dynamo.reset()
    steps = JointTrainStep([run], plan)  # type: ignore[list-item]
    try:
        return _measured(steps.step, batch, options, device) | {"recordings": steps.graph_count}
    finally:
        trainable.detach()


def _compiled(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    return _lorasmith(name, batch, options, device, compile="on")


def _fp8(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    return _lorasmith(name, batch, options, device, fp8=True)


def _within(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Measure steps within a memory limit, which is removed afterwards."""
    try:
        return _lorasmith(name, batch, options, device, vram_limit=options.memory)
    finally:
        limit_gpu_memory(device, None)


def _four(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Measure several LoRAs that share each pass."""
    unet = make_unet(name, device, torch.bfloat16, options.tiny)
    loras = [adapters(name, unet, RANK, seed) for seed in range(4)]
    gates = [lora.attached.gate for lora in loras]
    runs = []
    for index, (lora, gate) in enumerate(zip(loras, gates, strict=True)):
        routing = GateRouting(gate, joint=[other for other in gates if other is not gate])
        inputs = Inputs(name, unet, batch, seed=index, side=options.side)
        runs.append(SyntheticRun(name, unet, lora, inputs, routing))
    steps = JointTrainStep(runs, ExecutionPlan(device.type == "cuda"))  # type: ignore[arg-type]
    result = _measured(steps.step, 4 * batch, options, device)
    for lora in loras:
        lora.detach()
    return result


def _recipe(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Measure the public recipe, its latents and text embeddings computed beforehand."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet = make_unet(name, device, torch.bfloat16, options.tiny)
    ours = adapters(name, unet, RANK)
    paths = [target.ref.path for target in ours.targets]
    ours.detach()
    config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=paths)
    unet.add_adapter(config)
    cast_training_params(unet, dtype=torch.float32)
    unet.train()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    noises = DDPMScheduler.from_config(scheduler(name))
    inputs = Inputs(name, unet, batch, side=options.side)
    more = None
    if inputs.pooled is not None:
        more = {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids}
    clean = inputs.clean.to(torch.bfloat16)

    def step() -> None:
        noise = torch.randn_like(clean)
        levels = torch.randint(0, noises.config.num_train_timesteps, (batch,), device=device).long()
        noisy = noises.add_noise(clean, noise, levels)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(
                noisy, levels, inputs.context, added_cond_kwargs=more, return_dict=False
            )[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.detach().item()  # the progress bar of the recipe shows it

    return _measured(step, batch, options, device)


def _run_fp8(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    return _run(name, batch, options, device, fp8=True)


def _run(
    name: str, batch: int, options: argparse.Namespace, device: torch.device, fp8: bool = False
) -> Row:
    """Measure a full `lorasmith train`."""
    import lorasmith

    if not options.photos or not options.photos.is_dir():
        return {"error": "skipped: no folder of photographs (--photos)"}
    folder = write_model(name, options.scratch / name, device, options.tiny)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    out = options.scratch / f"{name}-run{'-fp8' if fp8 else ''}"
    started = time.perf_counter()
    lorasmith.train(
        {
            "data": {
                "path": _captioned(options.photos, options.scratch / "photos"),
                "tag": "sks", "validation_split": 0.0, "cache": False, "num_repeats": 8,
                "resolution": options.side * 8 or SIDE[name],
            },
            "model": {"path": folder},
            "output": {"name": str(out)},
            "lora": {"rank": RANK, "targets": "all-linear"},
            "train": {
                "steps": options.run_steps, "batch_size": batch, "mixed_precision": "bf16",
                "compile": "off", "fp8": fp8, "device": device.type,
                "checkpoint_every_n_steps": options.run_steps,
            },
            "validation": {"every_n_steps": 0},
            "track": {"tensorboard": False},
        }
    )  # fmt: skip
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "images_per_s" in line]
    steady = logged[len(logged) // 4 :]
    speed = statistics.median(entry["images_per_s"] for entry in steady)
    idle = [entry["gpu_idle"] for entry in steady if "gpu_idle" in entry]
    return {
        "images_per_s": speed, "ms": 1e3 * batch / speed, "whole_seconds": seconds,
        "steps": options.run_steps, "peak_gib": _peak(device),
        "gpu_idle": statistics.mean(idle) if idle else None,
        "loss": [round(entry["loss"], 5) for entry in logged],
    }  # fmt: skip


def _captioned(photos: Path, folder: Path) -> Path:
    """Copy photographs and write captions beside them."""
    for number, photo in enumerate(sorted(photos.rglob("*.jpg"))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(photo.read_bytes())
        text = f"a photo of sks {photo.parent.name.replace('_', ' ')}"
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


METHODS = {
    "recipe": _recipe,
    "lorasmith": _lorasmith,
    "compiled": _compiled,
    "fp8": _fp8,
    "memory": _within,
    "four": _four,
    "run": _run,
    "run-fp8": _run_fp8,
}


# --- measuring ------------------------------------------------------------------------------------


def _measured(step: Step, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first = _seconds(step, 3, device)
    times = [_seconds(step, 1, device) for _ in range(options.steps)]
    ms = 1e3 * statistics.median(times)
    if options.profile:
        _profile(step, options.out)
    return {
        "ms": ms, "images_per_s": 1e3 * batch / ms, "peak_gib": _peak(device),
        "first_steps_s": first,
    }  # fmt: skip


def _profile(step: Step, folder: Path) -> None:
    """Write how a step's GPU time is distributed over kernels."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    kernels = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in kernels) / 1e3
    lines = [f"{total:.1f} ms in {sum(kernel.count for kernel in kernels)} kernels"]
    lines += [
        f"{kernel.self_device_time_total / 1e3:9.2f} ms {kernel.count:6d} {kernel.key[:150]}"
        for kernel in kernels[:60]
    ]
    number = len(list(folder.glob("kernels-*.txt")))
    (folder / f"kernels-{number:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _seconds(step: Step, count: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _ceiling(device: torch.device, tiny: bool) -> float:
    """Return the speed of a large bfloat16 matrix product in TFLOP/s."""
    size, count = (128, 2) if tiny else (SIZE, 20)
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    _seconds(lambda: a @ b, 3, device)
    return count * 2 * size**3 / _seconds(lambda: a @ b, count, device) / 1e12


# --- the table ------------------------------------------------------------------------------------


def _describe(row: Row, ceiling: float) -> str:
    head = f"{row['model']} batch {row['batch']} {row['method']}: "
    if "error" in row:
        return head + str(row["error"])
    names = ("first_steps_s", "gpu_idle", "whole_seconds", "recordings", "loss")
    more = {name: row[name] for name in names if name in row}
    return head + " | ".join(_cells(row, ceiling)) + f" {more}"


def _cells(row: Row, ceiling: float) -> list[str]:
    work = 2 * TFLOP[row["model"]] * row["images_per_s"]
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    return [
        f"{row['ms']:.1f}", f"{row['images_per_s']:.1f}", peak, f"{work:.0f}",
        f"{work / ceiling:.0%}",
    ]  # fmt: skip


def table(rows: list[Row], ceiling: float) -> str:
    """Return the results as Markdown, with the ratio to the recipe of the same batch size."""
    heads = ["model", "batch", "method", "ms/step", "images/s", "peak GiB", "TFLOP/s", "of ceiling"]
    lines = ["| " + " | ".join([*heads, "recipe x"]) + " |", "|" + "---|" * (len(heads) + 1)]
    recipe = {
        (row["model"], row["batch"]): row["images_per_s"]
        for row in rows
        if row["method"] == "recipe" and "error" not in row
    }
    for row in rows:
        names = [row["model"], str(row["batch"]), row["method"]]
        if "error" in row:
            lines.append("| " + " | ".join([*names, row["error"], "", "", "", "", ""]) + " |")
            continue
        base = recipe.get((row["model"], row["batch"]))
        ratio = f"{row['images_per_s'] / base:.2f}" if base else ""
        lines.append("| " + " | ".join([*names, *_cells(row, ceiling), ratio]) + " |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(SIDE), default=sorted(SIDE))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured")
    parser.add_argument("--memory", default="12GB")
    parser.add_argument("--profile", action="store_true", help="write where the time goes")
    parser.add_argument("--photos", type=Path, help="a folder of photographs, for `run`")
    parser.add_argument("--run-steps", type=int, default=200)
    parser.add_argument("--run-batch", type=int, default=4)
    parser.add_argument("--scratch", type=Path, default=Path("bench/out/models"))
    parser.add_argument("--out", type=Path, default=Path("bench/out/train_speed"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=0, help="latents' side, if not the model's own")
    parser.add_argument("--tiny", action="store_true", help="narrow networks, to try this out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("skipped: these models need a CUDA GPU (--device cpu --tiny tries the program)")
    return options


if __name__ == "__main__":
    main()
