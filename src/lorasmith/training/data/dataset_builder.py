"""Building a training dataset from settings: read, bucket, encode."""

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
from lorasmith.core.device import compute_dtype
from lorasmith.core.errors import LorasmithWarning
from lorasmith.data.batch_sampler import BucketBatchSampler
from lorasmith.data.cache.tensor_cache import default_cache_dir
from lorasmith.data.caption_tags import remove_tag
from lorasmith.data.images.bucketed_images import BucketedImages, read_image_header
from lorasmith.data.images.buckets import Bucket, Size, assign_bucket
from lorasmith.data.images.memory_budget import reserve_decoding
from lorasmith.data.reading.row import Row
from lorasmith.models.families.family import detect_family
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.runs.paths import check_outside_dataset
from lorasmith.training.data.captions.captions import CaptionEncoder, OnlineCaptions, TextSource
from lorasmith.training.data.captions.encoding import (
    encode_captions,
    tokenize_captions,
)
from lorasmith.training.data.captions.gating import NO_GATING, CaptionGating
from lorasmith.training.data.captions.lengths import count_caption_chunks
from lorasmith.training.data.dataset import TrainDataset
from lorasmith.training.data.latents import LatentSource, OnlineLatents, encode_latents
from lorasmith.training.data.module_hash import hash_module
from lorasmith.training.data.resolution import buckets_for_model
from lorasmith.training.data.split import DatasetSplit, split_dataset
from lorasmith.training.data.vae_encoding import (
    ImageAugmentation,
    InpaintMaskConfig,
    TrainImages,
    VaeEncoder,
    hash_content,
    open_encoder_cache,
)

if TYPE_CHECKING:
    from lorasmith.models.model import Model


def build_dataset(
    model: "Model",
    data: DataConfig,
    train: TrainerConfig,
    device: torch.device,
    split: DatasetSplit | None = None,
    encodes_text_in_step: bool = False,
    gating: CaptionGating = NO_GATING,
    num_processes: int = 1,
) -> TrainDataset:
    """Prepare the images and captions of a run.

    The VAE and the text encoders run on ``device`` in their dtype, which should be float32.

    Args:
        model: the model to train, frozen and in evaluation mode.
        data: settings of the images.
        train: settings of the training.
        device: device of the batches.
        split: the images, where they have been read already.
        encodes_text_in_step: batches have token ids instead of embeddings.
        gating: what batches need for trigger gating and the preservation loss.
        num_processes: how many processes share an optimizer step.

    Raises:
        ConfigError: a setting does not fit the model, or the cache is inside the image folder.
        DataError: an image or caption cannot be used; the message names it.
    """
    buckets = buckets_for_model(model, data)
    split = split or split_dataset(data)
    _warn_about_unused_masks(data.inpaint_masks, model)
    cache_root = _cache_root(data)
    _move_encoders(model, device, device)
    num_chunks = count_caption_chunks(model, data, split, gating.needs_plain_captions)
    dtype = compute_dtype(train.mixed_precision)
    caption_encoder = CaptionEncoder(model, dtype, device, gating.token_mask_fn, num_chunks)
    return _Builder(
        model=model,
        data=data,
        gating=gating,
        buckets=buckets,
        device=device,
        seed=train.seed,
        images_per_step=train.images_per_step(num_processes),
        masks_loss=train.loss.masked,
        vae_encoder=VaeEncoder(model.vae, model.vae_scale_factor, cache_root),
        caption_encoder=caption_encoder,
        cache_root=cache_root,
        encodes_text_in_step=encodes_text_in_step,
    ).build(split)


def offload_unused_encoders(
    model: "Model", datasets: Sequence[TrainDataset], encodes_text_in_step: bool
) -> None:
    """Move the VAE and the text encoders to the CPU unless a step of these datasets needs them.

    Those that a step needs move to the training device.
    """
    device = datasets[0].loss_weights.device
    needs_vae = any(isinstance(dataset.latents, OnlineLatents) for dataset in datasets)
    needs_text = encodes_text_in_step or any(
        isinstance(dataset.captions, OnlineCaptions) for dataset in datasets
    )
    cpu = torch.device("cpu")
    _move_encoders(model, device if needs_vae else cpu, device if needs_text else cpu)


def _move_encoders(model: "Model", vae_device: torch.device, text_device: torch.device) -> None:
    with suppress_logs():
        model.vae.to(vae_device)
        for encoder in model.text_encoders:
            encoder.to(text_device)


def _warn_about_unused_masks(inpaint_masks: str, model: "Model") -> None:
    if inpaint_masks == "random" and not model.is_inpainting:
        warnings.warn(
            "data.inpaint_masks has no effect: the model does not inpaint",
            LorasmithWarning,
            stacklevel=3,
        )


def _cache_root(data: DataConfig) -> Path | None:
    """Return the cache folder, which must not be inside the image folder."""
    if not data.cache:
        return None
    root = data.cache_dir or default_cache_dir()
    check_outside_dataset(root, data, "data.cache_dir")
    return root


@dataclass(frozen=True)
class _Builder:
    """Builds the train and the validation dataset of a run."""

    model: "Model"
    data: DataConfig
    gating: CaptionGating
    buckets: Sequence[Bucket]
    device: torch.device
    seed: int
    images_per_step: int
    masks_loss: bool
    vae_encoder: VaeEncoder
    caption_encoder: CaptionEncoder
    cache_root: Path | None
    encodes_text_in_step: bool

    @cached_property
    def text_encoder_hashes(self) -> list[str]:
        """The text encoders' hashes; empty texts without a cache."""
        if not self.cache_root:
            return ["" for _ in self.model.text_encoders]
        return [hash_module(encoder) for encoder in self.model.text_encoders]

    def build(self, split: DatasetSplit) -> TrainDataset:
        """Return the training images with the validation images; frees encoders afterwards."""
        rows = split.validation_rows
        validation = self.validation(rows) if rows else None
        dataset = replace(self.train(split), validation=validation)
        offload_unused_encoders(self.model, [dataset], self.encodes_text_in_step)
        return dataset

    def train(self, split: DatasetSplit) -> TrainDataset:
        rows = [*split.train_rows, *split.class_rows]
        images = self._load_images(rows)
        captions = self._encode_captions(
            [row.caption for row in rows], self.data.caption_dropout_rate
        )
        latents = self._encode_latents(rows, images)
        dataset = self._assemble(rows, len(split.train_rows), images, latents, captions)
        if not self.gating.needs_plain_captions:
            return dataset
        untagged = [remove_tag(row.caption, self.data.tag, self.data.class_word) for row in rows]
        return replace(dataset, captions_without_tag=self._encode_captions(untagged, 0.0))

    def validation(self, rows: Sequence[Row]) -> TrainDataset:
        """Return the validation images, without augmentation and caption dropout."""
        images = self._load_images(rows)
        latents = encode_latents(self.vae_encoder, images, flip=False, device=self.device)
        captions = self._cache_captions([row.caption for row in rows], 0.0)
        return self._assemble(rows, len(rows), images, latents, captions)

    def _load_images(self, rows: Sequence[Row]) -> TrainImages:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            hashes_and_sizes = list(pool.map(_hash_and_measure, rows))
        assignments = [assign_bucket(size, self.buckets) for _, size in hashes_and_sizes]
        family = detect_family(self.model)
        return TrainImages(
            BucketedImages(rows, assignments, self.data.background_rgb),
            bucket_indices=[self.buckets.index(each.bucket) for each in assignments],
            hashes=[content for content, _ in hashes_and_sizes],
            masks_loss=self.masks_loss,
            has_time_ids=self.model.unet.config.addition_embed_type == "text_time",
            aesthetic_score=self.data.aesthetic_score if family.uses_aesthetic_score else None,
            inpaint_masks=self._inpaint_mask_config() if self.model.is_inpainting else None,
        )

    def _inpaint_mask_config(self) -> InpaintMaskConfig:
        uses_files = self.data.inpaint_masks == "file"
        return InpaintMaskConfig(uses_files, self.data.num_random_masks, self.seed)

    def _encode_latents(self, rows: Sequence[Row], images: TrainImages) -> LatentSource:
        data = self.data
        crops_vary = data.crop == "random" and any(
            assignment.crop_slack != (0, 0) for assignment in images.bucketed.assignments
        )
        if crops_vary or data.color_jitter or self._masks_vary(rows):
            augmentation = ImageAugmentation(
                data.crop == "random", data.flip_aug, data.color_jitter
            )
            return OnlineLatents(self.vae_encoder, images, augmentation, self.device)
        return encode_latents(self.vae_encoder, images, flip=data.flip_aug, device=self.device)

    def _masks_vary(self, rows: Sequence[Row]) -> bool:
        """Whether a step draws a new inpainting mask for an image."""
        if not self.model.is_inpainting or self.data.num_random_masks:
            return False
        return self.data.inpaint_masks == "random" or any(row.mask_path is None for row in rows)

    def _encode_captions(self, captions: Sequence[str], dropout_rate: float) -> TextSource:
        if not self.data.shuffle_caption:
            return self._cache_captions(captions, dropout_rate)
        return OnlineCaptions(
            self.caption_encoder,
            captions,
            dropout_rate,
            self.data.keep_tokens,
            self.encodes_text_in_step,
        )

    def _cache_captions(self, captions: Sequence[str], dropout_rate: float) -> TextSource:
        if self.encodes_text_in_step:
            return tokenize_captions(self.caption_encoder, captions, dropout_rate)
        hashes = self.text_encoder_hashes
        cache = open_encoder_cache(self.cache_root, "texts", "".join(h[:8] for h in hashes))
        return encode_captions(self.caption_encoder, captions, dropout_rate, hashes, cache)

    def _assemble(
        self,
        rows: Sequence[Row],
        num_tagged: int,
        images: TrainImages,
        latents: LatentSource,
        captions: TextSource,
    ) -> TrainDataset:
        is_class = [index >= num_tagged for index in range(len(rows))]
        repeats = [row.repeats * self.data.num_repeats for row in rows]
        sampler = BucketBatchSampler(
            images.bucket_indices, repeats, self.images_per_step, self.seed, is_class
        )
        weights = [self.data.prior_loss_weight if each else 1.0 for each in is_class]
        has_own_tag = self.gating.has_own_tag
        return TrainDataset(
            rows,
            num_tagged,
            self.buckets,
            images.bucket_indices,
            images.bucketed.assignments,
            sampler,
            latents,
            captions,
            torch.tensor(weights, device=self.device),
            has_own_tag=None if has_own_tag is None else [has_own_tag(r.caption) for r in rows],
            has_other_tags=[
                [has_tag(r.caption) for r in rows] for has_tag in self.gating.has_other_tags
            ],
        )


def _hash_and_measure(row: Row) -> tuple[str, Size]:
    with reserve_decoding(row, with_mask=False):
        encoded = row.read_bytes()
        size, is_converted = read_image_header(encoded, row.key)
        return hash_content(encoded, is_converted), size
