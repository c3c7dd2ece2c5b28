"""The training pictures as the network needs them, batch by batch."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorasmith.config.train_config import DataConfig, TrainerConfig
from lorasmith.core.batch_rng import BatchRng
from lorasmith.core.device import compute_dtype, to_device_async
from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.batch_sampler import BucketBatchSampler
from lorasmith.data.cache.tensor_cache import TensorCache, default_cache_dir
from lorasmith.data.images.bucketed_images import BucketedImages, read_image_size
from lorasmith.data.images.buckets import Bucket, BucketAssignment, Size, assign_bucket
from lorasmith.data.reading.row import Row
from lorasmith.data.tags import remove_tag
from lorasmith.models.family import detect_family
from lorasmith.models.load import suppress_logs
from lorasmith.runs.paths import check_outside_dataset
from lorasmith.training.data.batch import Batch
from lorasmith.training.data.caption_lengths import count_caption_chunks
from lorasmith.training.data.captions import (
    OnlineCaptions,
    TextSource,
    encode_captions,
    tokenize_captions,
)
from lorasmith.training.data.latents import LatentSource, OnlineLatents, encode_latents
from lorasmith.training.data.module_hash import hash_module
from lorasmith.training.data.resolution import buckets_for_model
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.data.vae_encoding import InpaintMaskConfig, TrainImages, content_hash
from lorasmith.training.gating import NO_GATING, CaptionGating

if TYPE_CHECKING:
    from lorasmith.models.load import Model


@dataclass(frozen=True)
class TrainDataset:
    """Pictures to take batches from. It keeps no state: batches depend on their arguments only."""

    rows: Sequence[Row]
    """The pictures, in the order of their numbers: the tagged ones, then the class pictures."""
    num_tagged: int
    """How many of them are tagged."""
    buckets: Sequence[Bucket]
    """The sizes that pictures may have."""
    bucket_indices: Sequence[int]
    """Which of them each picture has."""
    assignments: Sequence[BucketAssignment]
    """How each picture was scaled and cropped; random crops have the scaling in common."""
    batch_sampler: BucketBatchSampler
    """Which pictures each step takes."""
    latents: LatentSource
    """Where the pictures of a batch come from."""
    captions: TextSource
    """Where the captions of a batch come from."""
    loss_weights: torch.Tensor
    """Weight of each picture's loss, float32 ``[N]`` on the training device."""
    validation: "TrainDataset | None" = None
    """Pictures that are only measured, never changed at random; None without any."""
    captions_without_tag: TextSource | None = None
    """The captions without the tag, where these are wanted."""
    has_own_tag: Sequence[bool] | None = None
    """Which of the captions call the set's own feature, where that matters."""
    has_other_tags: Sequence[Sequence[bool]] = ()
    """For each earlier feature, which of the captions call it."""

    def get_batch(self, numbers: torch.Tensor, draws: BatchRng) -> Batch:
        """Return pictures and captions of one bucket, on the training device.

        Equal numbers and equally seeded draws give an equal batch. Where latents and captions
        are fixed, nothing here waits for the device.

        Args:
            numbers: which pictures, int64 ``[B]`` on the CPU, as ``order`` gives them.
            draws: this part's share of the batch's random numbers, for B pictures.
        """
        pictures = self.latents.gather(numbers, draws)
        words = self.captions.gather(numbers, draws)
        return Batch(
            latents=pictures.latents,
            loss_weights=self.loss_weights[to_device_async(numbers, self.loss_weights.device)],
            indices=numbers,
            context=words.context,
            pooled=words.pooled,
            time_ids=pictures.time_ids,
            inpaint_cond=pictures.inpaint_cond,
            loss_mask=pictures.loss_mask,
            input_ids=words.input_ids,
            input_ids_2=words.input_ids_2,
            token_mask=words.token_mask,
            has_own_tag=None if self.has_own_tag is None else _chosen(self.has_own_tag, numbers),
            has_other_tags=[_chosen(one, numbers) for one in self.has_other_tags],
        )

    def get_batch_without_tag(self, batch: Batch, draws: BatchRng, strength: float) -> Batch:
        """Return a batch of the same pictures under captions without the tag.

        Args:
            batch: what ``batch`` returned.
            draws: this part's share of random numbers that nothing else uses.
            strength: weight of each picture.
        """
        if self.captions_without_tag is None:
            raise ValueError("this set was made without such captions")
        words = self.captions_without_tag.gather(batch.indices, draws)
        return replace(
            batch,
            loss_weights=torch.full_like(batch.loss_weights, strength),
            context=words.context,
            pooled=words.pooled,
            input_ids=words.input_ids,
            input_ids_2=words.input_ids_2,
            token_mask=words.token_mask,
            task="preserve",
        )

    def iter_bucket_batches(self, batch_size: int) -> list[torch.Tensor]:
        """Return all numbers once, cut into batches of one bucket each, always the same ones."""
        owned = [
            [number for number, own in enumerate(self.bucket_indices) if own == bucket]
            for bucket in sorted(set(self.bucket_indices))
        ]
        return [part for own in owned for part in torch.split(torch.tensor(own), batch_size)]

    def describe_images(self) -> list[dict[str, object]]:
        """Return what was done to each picture, for the run's files."""
        return [
            {
                "picture": row.key,
                "class": number >= self.num_tagged,
                "size": list(placed.original_size),
                "bucket": str(placed.bucket),
                "resized": list(placed.resized_size),
                "crop": list(placed.crop_box),
            }
            for number, (row, placed) in enumerate(zip(self.rows, self.assignments, strict=True))
        ]

    def image_keys(self, numbers: torch.Tensor) -> list[str]:
        """Return the names of some pictures, each once."""
        return list(dict.fromkeys(self.rows[number].key for number in numbers.tolist()))


def build_dataset(
    model: "Model",
    data: DataConfig,
    train: TrainerConfig,
    device: torch.device,
    split: DatasetSplit | None = None,
    text_trained: bool = False,
    gating: CaptionGating = NO_GATING,
    num_processes: int = 1,
) -> TrainDataset:
    """Prepare the pictures and captions of a run.

    The VAE and the text encoders run on ``device`` in the number format that they have, which
    should be float32. Those that no step needs are on the CPU afterwards.

    Args:
        model: the model to be trained, frozen and in evaluation mode.
        data: settings of the pictures.
        train: settings of the training.
        device: where batches are wanted.
        chosen: the pictures, where they have been read already.
        text_trained: hand on token ids instead of embeddings, for a text encoder in the step.
        gating: what batches shall say for gates and for preservation.
        num_processes: how many processes share an optimizer step.

    Raises:
        ConfigError: a setting does not fit the model, or the cache lies among the pictures.
        DataError: a picture or caption cannot be used; it is named.
    """
    buckets = buckets_for_model(model, data)
    split = split or split_dataset(data)
    if data.inpaint_masks == "random" and not model.is_inpainting:
        warnings.warn(
            "data.inpaint_masks has no effect: the model does not inpaint",
            LorasmithWarning,
            stacklevel=2,
        )
    root = _cache_root(data)
    chunks = count_caption_chunks(model, data, split, gating.plain)
    builder = _Builder(
        model, data, train, device, text_trained, gating, buckets, root, chunks, num_processes
    )
    with suppress_logs():
        model.vae.to(device)
        for encoder in model.text_encoders:
            encoder.to(device)
    held_out = builder.held_out(split.validation_rows) if split.validation_rows else None
    learned = replace(builder.learned(split), validation=held_out)
    offload_unused_encoders(model, [learned], text_trained)
    return learned


def offload_unused_encoders(
    model: "Model", datasets: Sequence[TrainDataset], text_trained: bool
) -> None:
    """Send networks that no step needs to the CPU, and others to where the steps are.

    Args:
        model: whose VAE and text encoders they are.
        sets: all sets that steps take batches from.
        text_trained: whether text encoders run in the step.
    """
    device = datasets[0].loss_weights.device
    pictured = any(isinstance(one.latents, OnlineLatents) for one in datasets)
    worded = text_trained or any(isinstance(one.captions, OnlineCaptions) for one in datasets)
    with suppress_logs():
        model.vae.to(device if pictured else "cpu")
        for encoder in model.text_encoders:
            encoder.to(device if worded else "cpu")


def _cache_root(data: DataConfig) -> Path | None:
    """Return the cache's folder, which is never among the user's pictures."""
    if not data.cache:
        return None
    root = data.cache_dir or default_cache_dir()
    check_outside_dataset(root, data, "data.cache_dir")
    return root


@dataclass(frozen=True)
class _Builder:
    """What the parts of a training set are made with."""

    model: "Model"
    data: DataConfig
    train: TrainerConfig
    device: torch.device
    text_trained: bool
    gating: CaptionGating
    buckets: Sequence[Bucket]
    cache_root: Path | None
    chunks: int
    num_processes: int

    @cached_property
    def vae_identity(self) -> str:
        """The VAE's hash, where there is a cache that needs it."""
        return hash_module(self.model.vae) if self.cache_root else ""

    @cached_property
    def text_identities(self) -> list[str]:
        """Those of the text encoders."""
        return [hash_module(one) if self.cache_root else "" for one in self.model.text_encoders]

    def learned(self, chosen: DatasetSplit) -> TrainDataset:
        """Return the pictures that are learned from."""
        rows = [*chosen.train_rows, *chosen.class_rows]
        pictures = self._pictures(rows)
        moving = self.data.crop == "random" and any(
            placed.crop_slack != (0, 0) for placed in pictures.placed.assignments
        )
        latents: LatentSource
        if moving or self.data.color_jitter or self._masks_are_new(rows):
            latents = OnlineLatents(
                self.model.vae, self.model.vae_scale_factor, pictures, self.data, self.device
            )
        else:
            latents = self._fixed_latents(pictures, self.data.flip_aug)
        made = self._set(rows, len(chosen.train_rows), pictures, latents, self._words(rows))
        return replace(made, captions_without_tag=self._plain(rows)) if self.gating.plain else made

    def _masks_are_new(self, rows: Sequence[Row]) -> bool:
        """Tell whether a new mask is drawn for a picture every time."""
        if not self.model.is_inpainting or self.data.num_random_masks:
            return False
        return self.data.inpaint_masks == "random" or any(row.mask_path is None for row in rows)

    def held_out(self, rows: Sequence[Row]) -> TrainDataset:
        """Return the pictures that are measured: not changed at random, and with whole captions."""
        pictures = self._pictures(rows)
        latents = self._fixed_latents(pictures, False)
        words = self._fixed([row.caption for row in rows], 0.0)
        return self._set(rows, len(rows), pictures, latents, words)

    def _set(
        self,
        rows: Sequence[Row],
        tagged: int,
        pictures: TrainImages,
        latents: LatentSource,
        words: TextSource,
    ) -> TrainDataset:
        classed = [number >= tagged for number in range(len(rows))]
        repeats = [row.repeats * self.data.num_repeats for row in rows]
        bucket_of = pictures.bucket_of
        images = self.train.images_per_step(self.num_processes)
        order = BucketBatchSampler(bucket_of, repeats, images, self.train.seed, classed)
        own = self.gating.own
        weights = [self.data.prior_loss_weight if other else 1.0 for other in classed]
        return TrainDataset(
            rows,
            tagged,
            self.buckets,
            bucket_of,
            pictures.placed.assignments,
            order,
            latents,
            words,
            torch.tensor(weights, device=self.device),
            has_own_tag=None if own is None else [own(row.caption) for row in rows],
            has_other_tags=[[calls(row.caption) for row in rows] for calls in self.gating.earlier],
        )

    def _pictures(self, rows: Sequence[Row]) -> TrainImages:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            read = list(pool.map(_measured, rows))
        placements = [assign_bucket(size, self.buckets) for _, size in read]
        return TrainImages(
            BucketedImages(rows, placements, self.data.background_rgb),
            [self.buckets.index(placed.bucket) for placed in placements],
            [content for content, _ in read],
            self.train.loss.masked,
            self.model.unet.config.addition_embed_type == "text_time",
            self.data.aesthetic_score if detect_family(self.model).uses_aesthetic_score else None,
            self._holes() if self.model.is_inpainting else None,
        )

    def _holes(self) -> InpaintMaskConfig:
        return InpaintMaskConfig(
            self.data.inpaint_masks == "file", self.data.num_random_masks, self.train.seed
        )

    def _fixed_latents(self, pictures: TrainImages, flip: bool) -> LatentSource:
        cache = self._cache("latents", self.vae_identity)
        return encode_latents(
            self.model.vae,
            self.vae_identity,
            self.model.vae_scale_factor,
            pictures,
            flip,
            cache,
            self.device,
        )

    def _words(self, rows: Sequence[Row]) -> TextSource:
        return self._captions([row.caption for row in rows], self.data.caption_dropout_rate)

    def _plain(self, rows: Sequence[Row]) -> TextSource:
        """Return the captions without the tag; none of them is dropped."""
        tag, class_word = self.data.tag, self.data.class_word
        return self._captions([remove_tag(row.caption, tag, class_word) for row in rows], 0.0)

    def _captions(self, captions: Sequence[str], dropout: float) -> TextSource:
        if not self.data.shuffle_caption:
            return self._fixed(captions, dropout)
        data = self.data.model_copy(update={"caption_dropout": dropout})
        dtype, marker = compute_dtype(self.train.mixed_precision), self.gating.marker
        return OnlineCaptions(
            self.model,
            captions,
            data,
            dtype,
            self.device,
            self.text_trained,
            marker,
            self.chunks,
        )

    def _fixed(self, captions: Sequence[str], dropout: float) -> TextSource:
        dtype, marker = compute_dtype(self.train.mixed_precision), self.gating.marker
        if self.text_trained:
            return tokenize_captions(
                self.model, captions, dropout, self.device, marker, self.chunks
            )
        names = self.text_identities
        cache = self._cache("texts", "".join(name[:8] for name in names))
        return encode_captions(
            self.model,
            names,
            captions,
            dropout,
            dtype,
            cache,
            self.device,
            marker,
            self.chunks,
        )

    def _cache(self, kind: str, identity: str) -> TensorCache:
        """Return the cache of one network, whose folder holds no other's entries."""
        return TensorCache(self.cache_root and self.cache_root / kind / identity[:16])


def _chosen(known: Sequence[bool], numbers: torch.Tensor) -> list[bool]:
    return [known[number] for number in numbers.tolist()]


def _measured(row: Row) -> tuple[str, Size]:
    """Return the hash and the size of a picture."""
    encoded = row.read_bytes()
    return content_hash(encoded), read_image_size(encoded, row.key)
