"""Train a LoRA from Python, watch it with a callback, and draw with it.

python examples/train_in_python.py --out trained
"""

import argparse
from pathlib import Path

import lorasmith

IMAGES = Path(lorasmith.__file__).parent / "demo_data"


class PrintLoss(lorasmith.Callback):
    """Prints the loss every few steps, and stops when it is low enough."""

    def __init__(self, interval: int = 5, target: float = 0.0) -> None:
        self.every, self.target = interval, target

    def on_step_end(self, state, metrics) -> None:
        if state.step % self.every == 0:  # float() waits for the GPU: not at every step
            loss = float(metrics.loss)
            print(f"step {state.step}: loss {loss:.4f}")
            if loss < self.target:
                state.stop(f"the loss is below {self.target}")

    def on_save(self, state, path: Path) -> None:
        print(f"saved {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a LoRA from Python.")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="Folder for the results.")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--image-steps", type=int, default=20, help="Sampling steps of an image.")
    options = parser.parse_args(arguments)

    lora = lorasmith.train(
        {
            "data": {"path": str(IMAGES), "tag": "inkmono"},
            "output": {"name": str(options.out / "inkmono")},
            "train": {"steps": options.steps, "learning_rate": 8e-3},
            "validation": {"every_n_steps": 0},
        },
        callbacks=[PrintLoss()],
    )

    pipe = lorasmith.load_pipeline()
    pipe.load_lora(lora, weight=0.8)
    sampling = {"num_inference_steps": options.image_steps, "guidance_scale": 3.0}
    images = pipe(["a dog face, inkmono style", "a dog face"], seed=7, **sampling)
    for image, name in zip(images, ("with_tag", "without_tag"), strict=True):
        image.save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
