"""Does a LoRA learn a style from 24 images? Compared with the real images of other things.

    python bench/lora_quality.py --data emoji128.tar --out bench/out/quality

Trains with default settings on the demo's 24 images (Fluent Emoji High Contrast), generates 64
other things with the tag, and compares them with the real images of these things in that style.
Prints a table, writes ``lora_quality.json`` and ``sheet.png``.

- similarity: cosine of the embedded image encoder's embeddings, generated against real, mean over
  the 64. *base* is the base model with the same prompts and seeds. The *ceiling* compares real
  images: for each real image, the most similar other one of the style.
- verdict: share of the generated images that a classifier assigns to the new style. It was trained
  on real images only, none of them of the 24 or the 64; its accuracy is measured on concepts that
  it was not trained on.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from styles import StyleJudge, lot, train_judge

import lorasmith
from lorasmith.cli.demo.style import DEMO_DATA, TAG
from lorasmith.data.images.square_images import load_square_images, uint8_to_signed
from lorasmith.data.reading.reader import read_rows
from lorasmith.data.reading.row import Row
from lorasmith.evaluation.base_model import pil_to_tensor, tensor_to_pil
from lorasmith.models.image_encoder import embed_images, load_image_encoder
from lorasmith.models.vision.base import ImageEncoder
from lorasmith.reports.contact_sheet import make_contact_sheet

STYLE, STYLE_WORDS = "fluent-mono", "high contrast style"
CONCEPTS = 64
SIDE = 128
STEPS, GUIDANCE = 20, 3.0
PER_KNOWN_STYLE, PER_NEW_STYLE = 150, 500
"""Real images of each style that the classifier gets."""
AIMS = {"judged_in_style": 0.9, "way_to_ceiling": 0.5, "judge_accuracy": 0.9, "seconds": 400.0}


@dataclass(frozen=True)
class Split:
    """The real images by purpose."""

    shown: list[Row]
    """The 64 things to generate, with their real images."""
    style: list[Row]
    """All other images of the style, without the 24."""
    judge: list[Row]
    """The classifier's training images."""


def main() -> None:
    """Run the benchmark."""
    options = _options()
    if not options.data.is_file():
        sys.exit(f"skipped: {options.data} is absent (the packed emoji data, --data)")
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    split = split_rows(read_rows(options.data), options.concepts)
    tower = load_image_encoder()
    style_judge = train_judge(tower, split.judge, SIDE)
    print(
        f"judge: {style_judge.accuracy:.3f} right on {style_judge.validated_on} images of "
        "new concepts"
    )
    file, seconds = _train(out, options.steps)
    drawn = _draw(file, split.shown, options.num_inference_steps)
    results = measure(tower, style_judge, split, drawn) | {
        "training_seconds": round(seconds, 1),
        "judge_accuracy": round(style_judge.accuracy, 4),
        "judge_recall": {name: round(value, 4) for name, value in style_judge.recall.items()},
        "machine": machine(),
    }
    _write(results, out)
    _sheet(split.shown, drawn).save(out / "sheet.png", optimize=True)


def split_rows(rows: Sequence[Row], concepts: int) -> Split:
    """Split the real images by concept, so that no concept is both trained on and judged."""
    taught = {" ".join(path.stem.split("-")) for path in DEMO_DATA.glob("*.png")}
    known = {row.columns["name"] for row in rows if row.columns["role"] == "base"}
    style = [row for row in rows if row.columns["style"] == STYLE]
    names = taught & {row.columns["name"] for row in style}
    if len(names) != len(taught):
        sys.exit(f"the data lack {', '.join(sorted(taught - names))} in {STYLE}")
    # Concepts that the base model has never seen in any style are excluded.
    free = [
        row
        for row in style
        if row.columns["holdout"] == STYLE and row.columns["name"] in known - taught
    ]
    shown = sorted(free, key=lambda row: lot(f"quality:{row.key}"))[:concepts]
    kept_names = taught | {row.columns["name"] for row in shown}
    # Held-out features and concepts in the base model's styles say nothing about a style.
    others = [
        row
        for row in rows
        if row.columns["name"] not in kept_names
        and row.columns["holdout"] in ("", row.columns["style"])
    ]
    return Split(
        shown, [row for row in style if row.columns["name"] not in taught], _select(others)
    )


def _select(rows: Sequence[Row]) -> list[Row]:
    """Return a random selection of images of each style."""
    styles = sorted({row.columns["style"] for row in rows})
    chosen: list[Row] = []
    for style in styles:
        selected = sorted(
            (row for row in rows if row.columns["style"] == style),
            key=lambda row: lot(f"judge:{row.key}"),
        )
        known = any(row.columns["role"] == "base" for row in selected)
        chosen += selected[: PER_KNOWN_STYLE if known else PER_NEW_STYLE]
    return chosen


def _train(out: Path, steps: int | None) -> tuple[Path, float]:
    """Train with default settings; return the LoRA and the seconds."""
    for old in (out / f"{TAG}.safetensors", out / TAG):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    started = time.perf_counter()
    file = lorasmith.train(
        {
            "data": {"path": DEMO_DATA, "tag": TAG, "cache": False},
            "output": {"name": f"{out.absolute()}/{TAG}"},
            "train": {} if steps is None else {"steps": steps},
        }
    )
    return file, time.perf_counter() - started


def _draw(file: Path, shown: Sequence[Row], steps: int) -> dict[str, list[Image.Image]]:
    """Generate everything with the base model, with the tag, and without the tag."""
    plain = [row.caption.removesuffix(f", {STYLE_WORDS}") for row in shown]
    tagged = [f"{words}, {TAG} style" for words in plain]
    pipe = lorasmith.load_pipeline()

    def draw(prompts: list[str]) -> list[Image.Image]:
        return pipe(prompts, seed=0, steps=steps, guidance=GUIDANCE, batch_size=8)

    base = draw(tagged)
    pipe.load_lora(file, gate=False)  # "untagged" shows the effect of the words alone
    return {"base": base, "tagged": draw(tagged), "untagged": draw(plain)}


def measure(
    tower: ImageEncoder, style_judge: StyleJudge, split: Split, drawn: dict[str, list[Image.Image]]
) -> dict[str, Any]:
    """Return similarities and verdicts."""
    true = uint8_to_signed(load_square_images(split.shown, SIDE))
    of_true, of_style = embed_images(tower, true), _embedded(tower, split.style)
    to_style = of_true @ of_style.T
    same_image = torch.tensor([[a.key == b.key for b in split.style] for a in split.shown])
    ceiling = float(to_style.masked_fill(same_image, -1.0).max(dim=1).values.mean())
    others = float(to_style[~same_image].mean())
    results: dict[str, Any] = {"concepts": len(split.shown), "ceiling": ceiling}
    results["other_concepts_of_the_style"] = others
    for name, images in drawn.items():
        pictures = pil_to_tensor(images, SIDE)
        similarity = (embed_images(tower, pictures) * of_true).sum(dim=1)
        verdicts = style_judge.styles_of(pictures)
        results[name] = {
            "similarity": float(similarity.mean()),
            "judged_in_style": verdicts.count(STYLE) / len(verdicts),
        }
    results["true"] = {"judged_in_style": _share(style_judge.styles_of(true))}
    base, tagged = results["base"]["similarity"], results["tagged"]["similarity"]
    results["way_to_ceiling"] = (tagged - base) / (ceiling - base)
    return results


def _share(verdicts: Sequence[str]) -> float:
    return list(verdicts).count(STYLE) / len(verdicts)


def _embedded(tower: ImageEncoder, rows: Sequence[Row]) -> torch.Tensor:
    parts = [rows[start : start + CONCEPTS] for start in range(0, len(rows), CONCEPTS)]
    return torch.cat(
        [embed_images(tower, uint8_to_signed(load_square_images(part, SIDE))) for part in parts]
    )


def _write(results: dict[str, Any], out: Path) -> None:
    """Print the table and the targets, and write the JSON."""
    print(f"\n{results['concepts']} things that were not among the 24")
    print(f"{'':12}{'similarity':>12}{'in style':>10}")
    for name in ("base", "untagged", "tagged"):
        row = results[name]
        print(f"{name:12}{row['similarity']:12.3f}{row['judged_in_style']:10.1%}")
    print(f"{'ceiling':12}{results['ceiling']:12.3f}{results['true']['judged_in_style']:10.1%}")
    reached = {
        "judged_in_style": results["tagged"]["judged_in_style"],
        "way_to_ceiling": results["way_to_ceiling"],
        "judge_accuracy": results["judge_accuracy"],
        "seconds": results["training_seconds"],
    }
    for name, aim in AIMS.items():
        met = reached[name] < aim if name == "seconds" else reached[name] >= aim
        sign = "<" if name == "seconds" else ">="
        print(f"{name}: {reached[name]:.3g} (target {sign} {aim:g}, {'met' if met else 'NOT met'})")
    (out / "lora_quality.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{out / 'lora_quality.json'}, {out / 'sheet.png'}")


def _sheet(shown: Sequence[Row], drawn: dict[str, list[Image.Image]]) -> Image.Image:
    """Return a sheet with the base model's, the tagged and the real image of everything."""
    true = tensor_to_pil(uint8_to_signed(load_square_images(shown, SIDE)))
    triples = zip(drawn["base"], drawn["tagged"], true, shown, strict=True)
    cells = [((a, b, c), row.caption.split(",")[0]) for a, b, c, row in triples]
    return make_contact_sheet(cells, columns=4)


def machine() -> dict[str, Any]:
    """Return a description of machine and software."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _options() -> argparse.Namespace:
    assert __doc__ is not None  # noqa: S101 (for the type checker)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("emoji128.tar"), help="packed emoji data")
    parser.add_argument("--out", type=Path, default=Path("bench/out/quality"))
    parser.add_argument("--steps", type=int, help="training steps, if not the default")
    parser.add_argument("--concepts", type=int, default=CONCEPTS, help="things to generate")
    parser.add_argument("--num-inference-steps", type=int, default=STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
