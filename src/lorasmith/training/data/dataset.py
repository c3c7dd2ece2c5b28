"""The training images and captions as the network needs them, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import to_device_async
from lorasmith.data.batch_sampler import BucketBatchSampler
from lorasmith.data.images.buckets import Bucket, BucketAssignment
from lorasmith.data.reading.row import Row
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.captions.captions import TextSource
from lorasmith.training.data.latents import LatentSource


@dataclass(frozen=True)
class TrainDataset:
    """Images and captions to take batches from. A batch depends on the arguments only."""

    rows: Sequence[Row]
    """The images, tagged ones first, then class images; their positions are the indices."""
    num_tagged: int
    buckets: Sequence[Bucket]
    """The sizes that images may have."""
    bucket_indices: Sequence[int]
    """Which bucket each image has."""
    assignments: Sequence[BucketAssignment]
    """How each image is resized and cropped; random crops share the resizing."""
    batch_sampler: BucketBatchSampler
    """Which images each step takes."""
    latents: LatentSource
    captions: TextSource
    loss_weights: torch.Tensor
    """Weight of each image's loss, float32 ``[N]`` on the training device."""
    validation: "TrainDataset | None" = None
    """Images for the validation loss, without augmentation; None without any."""
    captions_without_tag: TextSource | None = None
    """The captions without the tag, for the preservation loss."""
    has_own_tag: Sequence[bool] | None = None
    """Whether each caption has the tag of the trained LoRA; None where it does not matter."""
    has_other_tags: Sequence[Sequence[bool]] = ()
    """For each frozen feature, whether each caption has its tag."""

    def get_batch(self, indices: torch.Tensor, rng: BatchRng) -> Batch:
        """Return images and captions of one bucket, on the training device.

        Equal indices and equally seeded generators give an equal batch. With cached latents and
        captions, the host does not wait for the device.

        Args:
            indices: which images, int64 ``[B]`` on the CPU, as ``batch_sampler`` gives them.
            rng: random numbers for these B images of the batch.
        """
        images = self.latents.gather(indices, rng)
        texts = self.captions.gather(indices, rng)
        return Batch(
            latents=images.latents,
            loss_weights=self.loss_weights[to_device_async(indices, self.loss_weights.device)],
            indices=indices,
            context=texts.context,
            pooled=texts.pooled,
            time_ids=images.time_ids,
            inpaint_cond=images.inpaint_cond,
            loss_mask=images.loss_mask,
            input_ids=texts.input_ids,
            input_ids_2=texts.input_ids_2,
            token_mask=texts.token_mask,
            has_own_tag=None if self.has_own_tag is None else _select(self.has_own_tag, indices),
            has_other_tags=[_select(has_tag, indices) for has_tag in self.has_other_tags],
        )

    def get_batch_without_tag(self, batch: Batch, rng: BatchRng, loss_weight: float) -> Batch:
        """Return a batch of the same images with captions without the tag.

        Args:
            batch: from ``get_batch``.
            rng: random numbers that nothing else uses.
            loss_weight: weight of each image's loss.
        """
        if self.captions_without_tag is None:
            raise ValueError("this dataset has no captions without the tag")
        texts = self.captions_without_tag.gather(batch.indices, rng)
        return replace(
            batch,
            loss_weights=torch.full_like(batch.loss_weights, loss_weight),
            context=texts.context,
            pooled=texts.pooled,
            input_ids=texts.input_ids,
            input_ids_2=texts.input_ids_2,
            token_mask=texts.token_mask,
            task="preserve",
        )

    def describe_images(self) -> list[dict[str, object]]:
        """Return how each image is resized and cropped, for the run folder."""
        return [
            {
                "picture": row.key,
                "class": index >= self.num_tagged,
                "size": list(assignment.original_size),
                "bucket": str(assignment.bucket),
                "resized": list(assignment.resized_size),
                "crop": list(assignment.crop_box),
            }
            for index, (row, assignment) in enumerate(zip(self.rows, self.assignments, strict=True))
        ]

    def image_keys(self, indices: torch.Tensor) -> list[str]:
        """Return the names of images, each once."""
        return list(dict.fromkeys(self.rows[index].key for index in indices.tolist()))


def _select(values: Sequence[bool], indices: torch.Tensor) -> list[bool]:
    return [values[index] for index in indices.tolist()]
