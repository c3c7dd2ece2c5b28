"""Generate docs/images/first_images.png with the embedded model.

python docs/first_images.py
"""

from pathlib import Path

import lorasmith
from lorasmith.inference.outputs.grid import make_labelled_grid

PROMPTS = (
    "a red apple, noto style",
    "a cat face, twemoji style",
    "a smiling face with sunglasses, fluent style",
    "a sailboat, fluent flat style",
    "a rocket, fluent 3d style",
    "a frog, blob style",
)
IMAGES_PER_PROMPT = 2
SEED = 0


def main() -> None:
    """Write a labelled grid with the images of each prompt, seeds in order."""
    pipe = lorasmith.load_pipeline()
    columns = [
        pipe(prompt, seed=SEED, num_images_per_prompt=IMAGES_PER_PROMPT) for prompt in PROMPTS
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    grid = make_labelled_grid(rows, column_labels=PROMPTS)
    path = Path(__file__).parent / "images" / "first_images.png"
    path.parent.mkdir(exist_ok=True)
    grid.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
