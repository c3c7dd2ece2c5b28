"""Make the table with which `lorasmith check` judges the variety of images.

    python recipes/variety/reference.py emoji128.tar \\
        src/lorasmith/evaluation/metrics/diversity_reference.json

Random sets of 4 to 24 images, each of one style, are traced to black lines on white and embedded by
the embedded model's image encoder. The table has the 5th percentile of their mean pairwise
distances for each size. It belongs to one image encoder, whose hash is stored with it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from lorasmith.core.files import sha256_file, write_text
from lorasmith.data.images.decode import decode_image
from lorasmith.data.images.square_images import uint8_to_signed
from lorasmith.data.reading.reader import Row, read_rows
from lorasmith.evaluation.metrics.diversity import (
    IMAGE_SIDE,
    MAX_REFERENCE_IMAGES,
    MIN_IMAGES,
    mean_cosine_distance,
)
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.image_encoder import FOLDER, embed_images, load_image_encoder

PER_STYLE = 400
SETS = 4000
PERCENTILE = 5
SEED = 0
_DARK = 200


def main(packed: Path, out: Path) -> None:
    """Write the table."""
    draw = np.random.default_rng(SEED)
    styles: dict[str, list[Row]] = {}
    for row in read_rows(packed):
        if row.columns["role"] == "base":
            styles.setdefault(row.columns["style"], []).append(row)
    tower = load_image_encoder()
    embedded = []
    for style, rows in sorted(styles.items()):
        chosen = draw.choice(len(rows), min(PER_STYLE, len(rows)), replace=False)
        pictures = torch.stack([traced(rows[number]) for number in chosen])
        embedded.append(embed_images(tower, uint8_to_signed(pictures)))
        print(f"{style}: {len(chosen)} pictures", flush=True)
    table = {
        "about": "mean pairwise image-tower distance of random sets of one style, traced to lines",
        "command": f"python recipes/variety/reference.py {packed.name} {out.as_posix()}",
        "tower": tower_hash(),
        "side": IMAGE_SIDE,
        "percentile": PERCENTILE,
        "sets": SETS,
        "thresholds": {
            count: round(percentile(embedded, count, draw), 4)
            for count in range(MIN_IMAGES, MAX_REFERENCE_IMAGES + 1)
        },
    }
    write_text(out, json.dumps(table, indent=2) + "\n")


def traced(row: Row) -> torch.Tensor:
    """Return an image as black lines on white, uint8 ``[3, SIDE, SIDE]``."""
    grey = decode_image(row.read_bytes(), row.key).convert("L")
    lines = ImageOps.invert(grey.filter(ImageFilter.FIND_EDGES))
    lines = lines.point(lambda value: 255 if value > _DARK else 0).convert("RGB")
    small = lines.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def percentile(embedded: list[torch.Tensor], count: int, draw: np.random.Generator) -> float:
    """Return the percentile over random sets of one size, every style equally often."""
    distances = []
    for number in range(SETS):
        style = embedded[number % len(embedded)]
        chosen = draw.choice(len(style), count, replace=False)
        distances.append(mean_cosine_distance(style[torch.from_numpy(chosen)]))
    return float(np.percentile(distances, PERCENTILE))


def tower_hash() -> str:
    """Return the SHA-256 of the embedded image encoder's weights."""
    return sha256_file(EMBEDDED / FOLDER / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
