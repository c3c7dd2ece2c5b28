"""Taking single optimizer steps the way training does."""

from collections.abc import Sequence

from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise
from lorasmith.training.run_step import compute_gradients
from lorasmith.training.step.microbatch import Microbatch
from lorasmith.training.step.train_step import StepMetrics, TrainStep


def take_step(
    step: TrainStep, parts: Sequence[tuple[Batch, Noise]], batch_size: int
) -> StepMetrics:
    """Take an optimizer step of one LoRA.

    Args:
        step: the step.
        parts: its microbatches.
        batch_size: images of the whole step.
    """
    microbatches = [
        Microbatch(0, turn, batch_size, batch, noise) for turn, (batch, noise) in enumerate(parts)
    ]
    compute_gradients([step], microbatches)
    return step.finish()
