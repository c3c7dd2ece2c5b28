"""Draw docs/images/first_pictures.png with the embedded model.

python docs/first_pictures.py
"""

from pathlib import Path

import lorasmith
from lorasmith.inference.outputs.save import make_labelled_grid

PROMPTS = (
    "a red apple, noto style",
    "a cat face, twemoji style",
    "a smiling face with sunglasses, fluent style",
    "a sailboat, fluent flat style",
    "a rocket, fluent 3d style",
    "a frog, blob style",
)
PICTURES = 2
SEED = 0


def main() -> None:
    """Draw two pictures of each prompt, seeds in order, into a captioned grid."""
    pipe = lorasmith.load_pipeline()
    drawn = [pipe(prompt, seed=SEED, num_images_per_prompt=PICTURES) for prompt in PROMPTS]
    rows = [list(row) for row in zip(*drawn, strict=True)]
    grid = make_labelled_grid(rows, column_labels=PROMPTS)
    path = Path(__file__).parent / "images" / "first_pictures.png"
    path.parent.mkdir(exist_ok=True)
    grid.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
