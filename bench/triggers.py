"""How well are two trigger words separated, with each method of training?

    python bench/triggers.py --data emoji128.tar --out bench/out/triggers

Methods (`--methods`), each with the same number of training images for each feature:

- plain: one LoRA on the mixed images of both, as in other trainers; no gate.
- staged: one after the other, prompt gates.
- joint: both at once, each image runs only its own feature's adapters, prompt gates.
- preserved: staged with preservation, used as plain files.
- held: staged with preservation four times as strong and in every step, used as plain files.
- projected: the preserved files after `lorasmith lora project`, used as plain files.
- token: staged with token gates.

Each cell (pair, method, seed) is one JSON file in OUT/cells; existing cells are reused, so a
stopped benchmark can be resumed. The table goes to standard output as Markdown. Runs on a GPU or
on CPUs.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lora_quality import machine
from trigger_data import PAIRS, PreparedFeature, mix, prepare

import lorasmith
from lorasmith.cli import run as command
from lorasmith.config.lora import GateKind
from lorasmith.core.device import pick_device
from lorasmith.core.files import write_text
from lorasmith.data.images.decode import decode_image
from lorasmith.data.reading.reader import read_rows
from lorasmith.evaluation.concept import EvalConcept
from lorasmith.evaluation.evaluator import Evaluator
from lorasmith.evaluation.feature_extractor import load_feature_extractor
from lorasmith.evaluation.image_generator import ImageGenerator
from lorasmith.evaluation.image_tables import pair_table
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.outputs.save import make_labelled_grid
from lorasmith.models.load import load_model

STAGED = {"mode": "staged"}
PRESERVE = {"strength": 1.0, "every_n_steps": 2, "earlier_features_strength": 1.0}
HOLD = {"strength": 4.0, "every_n_steps": 1, "earlier_features_strength": 4.0}


class Method(NamedTuple):
    """One method of training, and how its files are used."""

    settings: Mapping[str, Any]
    """Settings tables of the run; empty for the mixed LoRA."""
    gate: GateKind


METHODS: dict[str, Method] = {
    "plain": Method({}, "none"),
    "staged": Method({"train": STAGED}, "prompt"),
    "joint": Method({"train": {"mode": "joint"}}, "prompt"),
    "preserved": Method({"train": STAGED, "preserve": PRESERVE}, "none"),
    "held": Method({"train": STAGED, "preserve": HOLD}, "none"),
    "held+projected": Method({"train": STAGED, "preserve": HOLD}, "none"),
    "projected": Method({"train": STAGED, "preserve": PRESERVE}, "none"),
    "token": Method({"train": STAGED}, "token"),
}
PROJECTED = {"projected": "preserved", "held+projected": "held"}
"""Methods whose files are derived from another method's files."""
GATED = ("staged", "joint", "token")


def main() -> None:
    """Compute the missing cells, then print the table."""
    options = _options()
    if not options.data.is_file():
        sys.exit(f"skipped: {options.data} is absent (the packed emoji data, --data)")
    rows = read_rows(options.data)
    for pair in options.pairs:
        features = [prepare(rows, concept, options.out / "data") for concept in PAIRS[pair]]
        for seed in options.seeds:
            for method in options.methods:
                file = options.out / "cells" / f"{pair}-{method}-{seed}.json"
                if file.is_file():
                    continue
                started = time.perf_counter()
                print(f"{pair}, {method}, seed {seed}", file=sys.stderr, flush=True)
                cell = do_cell(features, pair, method, seed, options)
                cell |= {"seconds": round(time.perf_counter() - started, 1), "machine": machine()}
                write_text(file, json.dumps(cell, indent=2) + "\n")
    for pair in options.pairs:
        print(table(pair, read_cells(options.out / "cells", pair, options.seeds)))


# --- one cell -------------------------------------------------------------------------------------


def do_cell(
    features: Sequence[PreparedFeature],
    pair: str,
    method: str,
    seed: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train one method and measure it."""
    started = time.perf_counter()
    files = train(features, pair, method, seed, options)
    training = time.perf_counter() - started
    subjects = [
        subject(feature, file, METHODS[method].gate)
        for feature, file in zip(features, files, strict=True)
    ]
    device = pick_device(options.device)
    model = load_model(options.model).to(device, torch.float32)
    sampling = SamplingOptions(
        num_inference_steps=options.num_inference_steps, batch_size=options.images
    )
    studio = ImageGenerator(model, sampling)
    work = Evaluator(
        studio, load_feature_extractor(), range(1000 * seed, 1000 * seed + options.images)
    )
    figures = asdict(work.measure(subjects))
    first, second = subjects
    scene = pair_table(work, first, second, subjects)
    rows = [row.images for row in scene.rows]
    sheet = make_labelled_grid(
        rows, [row.label for row in scene.rows], scene.columns, f"{pair}, {method}, seed {seed}"
    )
    sheets = options.out / "sheets"
    sheets.mkdir(parents=True, exist_ok=True)
    sheet.save(sheets / f"{pair}-{method}-{seed}.png", optimize=True)
    return {
        "pair": pair, "method": method, "seed": seed, "steps": options.steps,
        "batch_size": options.batch_size, "training_seconds": round(training, 1), **figures,
    }  # fmt: skip


def train(
    features: Sequence[PreparedFeature],
    pair: str,
    method: str,
    seed: int,
    options: argparse.Namespace,
) -> list[Path]:
    """Return the LoRA of each feature; the mixed LoRA serves both."""
    if method in PROJECTED:
        files = train(features, pair, PROJECTED[method], seed, options)
        return [
            projected(feature, file, options) for feature, file in zip(features, files, strict=True)
        ]
    name = options.out / "runs" / f"{pair}-{method}-{seed}"
    common = {
        "output": {"name": str(name.absolute())},
        "model": {"path": options.model},
        "validation": {"every_n_steps": 0},
        "track": {"tensorboard": False},
        "lora": {"gate": METHODS[method].gate},
    }
    steps = {
        "steps": options.steps, "batch_size": options.batch_size, "seed": seed,
        "device": options.device,
    }  # fmt: skip
    if method == "plain":
        folder = mix(features, options.out / "data" / f"mixed-{pair}")
        first = features[0].feature
        data = {"path": folder, "tag": first.tag, "validation_split": 0.0}
        # Both features' images in one run: twice the steps show each as often.
        both_steps = {**steps, "steps": 2 * options.steps}
        file = finished(name) or lorasmith.train({**common, "data": data, "train": both_steps})
        return [file, file]
    settings = METHODS[method].settings
    config = {
        **common,
        **{key: value for key, value in settings.items() if key != "train"},
        "data": {"validation_split": 0.0},
        "train": {**steps, **settings["train"]},
        "feature": [
            {
                "tag": feature.feature.tag,
                "class_word": feature.feature.class_word,
                "data": str(feature.training),
            }
            for feature in features
        ],
    }
    finished_runs = [
        finished(name.with_name(f"{name.name}-{feature.feature.tag}")) for feature in features
    ]
    if all(finished_runs):
        return [file for file in finished_runs if file is not None]
    clear(name)
    files_by_tag = lorasmith.train_features(config)
    return [files_by_tag[feature.feature.tag] for feature in features]


def finished(name: Path) -> Path | None:
    """Return the LoRA of an earlier run."""
    file = name.with_name(f"{name.name}.safetensors")
    return file if file.is_file() else None


def clear(name: Path) -> None:
    """Remove the files of an unfinished run."""
    for path in name.parent.glob(f"{name.name}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def projected(feature: PreparedFeature, file: Path, options: argparse.Namespace) -> Path:
    """Return a LoRA whose keys and values react only to its tag."""
    out = file.with_name(f"{file.stem}-projected.safetensors")
    if not out.is_file():
        arguments = [
            "lora",
            "project",
            str(file),
            "--data",
            str(feature.training),
            "--out",
            str(out),
        ]
        arguments += ["--class", feature.feature.class_word]
        model = [] if options.model is None else ["-m", str(options.model)]
        if command([*arguments, *model]) != 0:
            sys.exit(f"{file} could not be projected")
    return out


def subject(feature: PreparedFeature, file: Path, gate: GateKind) -> EvalConcept:
    """Return a file with validation images to evaluate it on."""
    rows = read_rows(feature.validation)
    return EvalConcept(
        feature.feature.tag,
        feature.feature.class_word,
        file,
        gate,
        [decode_image(row.read_bytes(), row.key) for row in rows],
        [row.caption for row in rows],
        held_out=True,
    )


# --- the table ------------------------------------------------------------------------------------

Cell = Mapping[str, Any]
Read = Callable[[Cell], float | None]


def read_cells(folder: Path, pair: str, seeds: Sequence[int]) -> dict[str, list[Cell]]:
    """Return the existing cells of a pair, by method."""
    cells_by_method: dict[str, list[Cell]] = {}
    for method in METHODS:
        files = [folder / f"{pair}-{method}-{seed}.json" for seed in seeds]
        cells = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if cells:
            cells_by_method[method] = cells
    return cells_by_method


def fidelity(cell: Cell) -> float:
    """Return the mean fidelity of both tags."""
    return float(statistics.mean(feature["fidelity"]["lora"] for feature in cell["features"]))


def gain(cell: Cell) -> float | None:
    """Return the mean gain: the share from base model to real images."""
    return _mean([feature["fidelity"]["gain"] for feature in cell["features"]])


def leak(cell: Cell, space: str = "latent") -> float | None:
    """Return the mean leak ratio, with gates where the method has them."""
    mode = "gated" if cell["method"] in GATED else "plain"
    return _mean([feature[mode][space]["ratio"] for feature in cell["features"]])


def plain_leak(cell: Cell) -> float | None:
    """Return the mean leak ratio of predictions, without gates."""
    return _mean([feature["plain"]["prediction"]["ratio"] for feature in cell["features"]])


def bleeding(cell: Cell) -> float | None:
    """Return the largest off-diagonal share of bleeding, with gates where the method has them."""
    values = cell["gated" if cell["method"] in GATED else "plain"]
    return None if values is None else values["bleeding"]["share"]


def forgetting(cell: Cell) -> float | None:
    """Return the share of the first tag's gain that is lost when the second is loaded."""
    values = cell["gated" if cell["method"] in GATED else "plain"]
    if values is None or cell["method"] == "plain":  # a single file has no earlier state
        return None
    value = values["forgetting"][0]["forgetting"]
    return None if value is None else float(value)


def combination(cell: Cell) -> float | None:
    """Return the mean gain of images with both tags in the prompt."""
    (pair,) = cell["pairs"]
    return _mean([value["gain"] for value in pair["likeness"].values()])


COLUMNS: tuple[tuple[str, Read, str], ...] = (
    ("fidelity", fidelity, ".3f"),
    ("gain", gain, ".0%"),
    ("leak ratio, latents", leak, ".1%"),
    ("leak ratio, image tower", lambda cell: leak(cell, "image"), ".1%"),
    ("weights' leak, predictions", plain_leak, ".1%"),
    ("bleeding", bleeding, ".0%"),
    ("forgetting", forgetting, ".1%"),
    ("A+B, gain", combination, ".0%"),
    ("seconds of training", lambda cell: float(cell["training_seconds"]), ".0f"),
)


def table(pair: str, cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the results of a pair as Markdown: means over the seeds, and the targets."""
    first, second = PAIRS[pair]
    lines = [
        f"\n### {pair}: `{first.tag}` ({first.name}) and `{second.tag}` ({second.name})\n",
        "| | seeds | " + " | ".join(name for name, _, _ in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for method, method_cells in cells.items():
        shown = [_shown([read(cell) for cell in method_cells], form) for _, read, form in COLUMNS]
        lines.append(f"| {method} | {len(method_cells)} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *aims(cells)])


def aims(cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Return each target and whether it was met, one line each."""
    lines = []

    def add(aim: str, value: float | None, met: bool) -> None:
        shown = "not measured" if value is None else f"{value:.3g}, {'met' if met else 'NOT met'}"
        lines.append(f"- {aim}: {shown}")

    for method in GATED:
        ratios = [leak(cell) for cell in cells.get(method, [])]
        exact = all(
            feature["gated"]["exact"]
            for cell in cells.get(method, [])
            for feature in cell["features"]
        )
        if ratios:
            add(f"leak under the gate of {method} exactly 0", _mean(ratios), exact)
    base = cells.get("plain")
    for method in ("preserved", "projected", "held", "held+projected"):
        if base and method in cells:
            ratio = _share(_over(leak, cells[method]), _over(leak, base))
            add(
                f"leak ratio of {method} at most a quarter of plain's", ratio, _at_most(ratio, 0.25)
            )
            retained = _share(_over(fidelity, cells[method]), _over(fidelity, base))
            add(
                f"fidelity of {method} at least 90% of plain's",
                retained,
                retained is not None and retained >= 0.9,
            )
    for method, method_cells in cells.items():
        worst = _over(bleeding, method_cells)
        add(f"bleeding of {method} at most a quarter of the diagonal", worst, _at_most(worst, 0.25))
        if method != "plain":
            lost = _over(forgetting, method_cells)
            add(f"forgetting of {method} under 2%", lost, lost is not None and lost < 0.02)
    return lines


def _at_most(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


def _over(read: Read, cells: Sequence[Cell]) -> float | None:
    return _mean([read(cell) for cell in cells])


def _share(value: float | None, total: float | None) -> float | None:
    return value / total if value is not None and total else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _shown(values: Sequence[float | None], form: str) -> str:
    """Return the mean, with the largest deviation from it where there are several values."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = statistics.mean(known)
    if len(known) == 1 or max(known) == min(known):
        return format(mean, form)
    return f"{mean:{form}} ± {max(abs(value - mean) for value in known):{form}}"


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("emoji128.tar"), help="packed emoji data")
    parser.add_argument("--out", type=Path, default=Path("bench/out/triggers"))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250, help="training steps of each feature")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="images for each kind of prompt")
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--model", type=Path, help="a diffusers folder, if not the embedded model")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
