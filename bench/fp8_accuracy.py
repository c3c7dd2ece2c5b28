"""FP8 accuracy: does a LoRA train as well where the frozen model computes in FP8?

    python bench/fp8_accuracy.py --out bench/out/fp8

Trains the demo's style on the embedded model in float32, in bfloat16 and in bfloat16 with
`train.fp8`, each with several seeds, and compares the results. A seed fixes images, noise and the
adapters' initialisation, so runs with the same seed differ only by rounding. Here every linear
layer of the U-Net computes in FP8, of any size; in a real run only the largest do.

- validation: validation loss after training, as a share of the base model's.
- loss: mean over the last third of the steps, for each seed.
- curve: mean over the steps of |loss - loss of the bfloat16 run of that seed|, as a share of it.
- weights: distance of the learned weight changes from those of the bfloat16 run of that seed, as a
  share of their norm; *other seeds*: the same between bfloat16 runs with different seeds.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from lora_quality import machine
from safetensors.torch import load_file

import lorasmith
from lorasmith.cli.demo.style import DEMO_DATA, TAG
from lorasmith.ops import fp8

KINDS: dict[str, dict[str, Any]] = {
    "float32": {"mixed_precision": "fp32"},
    "bfloat16": {"mixed_precision": "bf16"},
    "FP8": {"mixed_precision": "bf16", "fp8": True},
}
Results = dict[tuple[str, int], dict[str, Any]]


def main() -> None:
    """Run the benchmark."""
    options = _options()
    fp8.MIN_WEIGHTS = fp8.MIN_TOKENS = 0
    measured: Results = {
        (kind, seed): _trained(kind, seed, options)
        for seed in range(options.seeds)
        for kind in KINDS
    }
    rows = compared(measured, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "steps": options.steps, "rows": rows}
    (options.out / "fp8_accuracy.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(rows))


def _trained(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    folder: Path = options.out / f"{kind.replace(' ', '-')}-{seed}"
    file = lorasmith.train(
        {
            "data": {"path": DEMO_DATA, "tag": TAG, "validation_split": 0.25},
            "output": {"name": str(folder)},
            "lora": {"targets": "all-linear"},
            "train": {
                "steps": options.steps, "log_every_n_steps": 1, "seed": seed, "batch_size": 8,
                "learning_rate": options.learning_rate, "device": options.device, **KINDS[kind],
            },
            "validation": {
                "every_n_steps": options.steps, "num_images": 1, "num_inference_steps": 1,
                "loss_timesteps": 16,
            },
            "track": {"tensorboard": False},
        }
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    base = [line["validation_loss_base"] for line in lines if "validation_loss_base" in line]
    print(f"{kind}, seed {seed}: validation loss {losses[-1]:.4f}", flush=True)
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validation_loss": losses[-1] / (base or losses)[0],
        "change": changes(Path(str(file))),
    }


def changes(file: Path) -> torch.Tensor:
    """Return the weight changes of a kohya file, flattened and concatenated."""
    tensors = load_file(file)
    return torch.cat(
        [
            (
                tensors[key.replace("lora_down", "lora_up")].float().flatten(1)
                @ down.float().flatten(1)
            ).flatten()
            for key, down in sorted(tensors.items())
            if key.endswith("lora_down.weight")
        ]
    )


def compared(results: Results, seeds: int) -> list[dict[str, Any]]:
    """Return a row for each precision."""
    others = [
        _relative_difference(results["bfloat16", a]["change"], results["bfloat16", b]["change"])
        for a, b in itertools.permutations(range(seeds), 2)
    ]
    rows = []
    for kind in KINDS:
        runs = [results[kind, seed] for seed in range(seeds)]
        beside = [results["bfloat16", seed] for seed in range(seeds)]
        rows.append(
            {
                "kind": kind,
                "validation_loss": [run["validation_loss"] for run in runs],
                "loss": [statistics.mean(run["losses"][-_third(run) :]) for run in runs],
                "curve": [_curve(a, b) for a, b in zip(runs, beside, strict=True)],
                "apart": [
                    _relative_difference(a["change"], b["change"])
                    for a, b in zip(runs, beside, strict=True)
                ],
                "other_seeds": others if kind == "bfloat16" else [],
            }
        )
    return rows


def _third(run: dict[str, Any]) -> int:
    """Return the number of steps in a third of a run."""
    return max(1, len(run["losses"]) // 3)


def _curve(run: dict[str, Any], reference: dict[str, Any]) -> float:
    pairs = zip(run["losses"], reference["losses"], strict=True)
    return statistics.mean(abs(a - b) for a, b in pairs) / statistics.mean(reference["losses"])


def _relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| | validation | loss | curve | weights | other seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row["kind"],
            _spread(row["validation_loss"]),
            _spread(row["loss"]),
            _mean(row["curve"]),
        ]
        lines.append(
            "| " + " | ".join([*cells, _mean(row["apart"]), _mean(row["other_seeds"])]) + " |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.2%}" if values else ""


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=Path("bench/out/fp8"))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not (
        torch.cuda.is_available() and fp8.is_available(torch.device("cuda"))
    ):
        sys.exit("skipped: this needs a GPU with FP8 (--device cpu tries it without one)")
    return options


if __name__ == "__main__":
    main()
