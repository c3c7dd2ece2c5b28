"""Train with a loss of your own: the Huber loss in place of the squared error.

python examples/custom_loss.py --out huber
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import lorasmith
from lorasmith.training.losses import LossContext

IMAGES = Path(lorasmith.__file__).parent / "demo_data"


@lorasmith.capturable  # it reads no value on the host: a GPU may capture the step as a CUDA graph
def huber_loss(context: LossContext) -> torch.Tensor:
    """Return the loss of each image, float32 ``[B]``: large errors count linearly."""
    error = F.huber_loss(context.prediction.float(), context.target, reduction="none", delta=0.5)
    # The same weights by noise level as the built-in loss has: min-SNR (arXiv:2303.09556).
    weights = context.process.min_snr_weight(context.timesteps, context.settings.min_snr_gamma)
    return 2 * weights * error.mean(dim=(1, 2, 3))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train with the Huber loss.")
    parser.add_argument("--out", type=Path, default=Path("huber"), help="Folder for the results.")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args(arguments)

    lora = lorasmith.train(
        {
            "data": {"path": str(IMAGES), "tag": "inkmono"},
            "output": {"name": str(options.out / "inkmono")},
            "train": {"steps": options.steps, "learning_rate": 8e-3},
            "validation": {"every_n_steps": 0},
        },
        loss_fn=huber_loss,
    )
    print(f"saved {lora}")


if __name__ == "__main__":
    main()
