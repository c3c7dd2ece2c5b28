"""Contrastive pretraining of a text encoder and an image encoder, as in CLIP."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from lorasmith.config.pretrain import ClipPretrainConfig
from lorasmith.core.errors import TrainingError
from lorasmith.data.batch_sampler import WeightedBatchSampler
from lorasmith.data.images.square_images import random_flip
from lorasmith.data.reading.filters import compute_row_weights
from lorasmith.models.files.open import EMBEDDED
from lorasmith.models.image_encoder import (
    ClipModel,
    load_clip,
    load_tokenizer,
    save_clip,
)
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges
from lorasmith.models.vision.base import ImageEncoder
from lorasmith.models.vision.conv_encoder import ConvImageEncoder
from lorasmith.models.vision.vision_transformer import VitSizes
from lorasmith.models.vision.vit_encoder import VitImageEncoder
from lorasmith.pretraining.augment import color_jitter, random_shift_and_zoom
from lorasmith.pretraining.captions import CaptionTable
from lorasmith.pretraining.dataset import find_flippable, load_images, select_rows, write_run_files
from lorasmith.pretraining.loop import Microbatch, PretrainLoop, open_loop

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

COLLAPSE_AFTER = 300
"""Steps after which a loss at chance level means that the encoders collapsed."""


def pretrain_clip(run: ClipPretrainConfig, resume: bool = False, break_lock: bool = False) -> Path:
    """Train both encoders; return the folder that holds them and the tokenizer.

    Raises:
        TrainingError: the loss is within 1% of ln(batch) after 300 steps: the encoders collapsed.
    """
    with open_loop(run.train, "CLIP", resume, break_lock) as loop:
        _train(run, loop)
    return run.train.output_dir


def _train(run: ClipPretrainConfig, loop: PretrainLoop) -> None:
    """Train, and save the result."""
    rows, _ = select_rows(run.data)
    write_run_files(loop, run, rows)
    images = load_images(rows, run.resolution, run.data, loop)
    flippable = find_flippable(rows, run.data).to(loop.device)
    tokenizer = _create_tokenizer(run)
    captions = CaptionTable(tokenizer, rows, loop.device)
    torch.manual_seed(run.train.seed)
    clip = loop.add_module("pair", _create_clip(run, len(tokenizer)), ema=True)
    sampler = WeightedBatchSampler(
        compute_row_weights(rows, run.data.weights),
        loop.images_per_step(run.train.batch_size),
        run.train.seed,
    )

    def compute_gradients(microbatch: Microbatch) -> None:
        indices, rng = microbatch.indices, microbatch.rng
        batch = random_flip(images.get_batch(indices), flippable[indices], rng)
        batch = random_shift_and_zoom(batch, run.random_shift, rng)
        batch = color_jitter(batch, run.color_jitter, rng)
        image, text, scale = clip(batch, captions.sample(indices, rng))
        loss, accuracy = contrastive_loss(_gather(image, loop), _gather(text, loop), scale)
        loop.backward(loss)
        loop.record_metrics(loss=loss, accuracy=accuracy)

    for step in loop.steps():
        loop.train_step(step, sampler.get_batch(step), compute_gradients)
        if step + 1 == COLLAPSE_AFTER:
            candidates = run.train.batch_size * loop.accelerator.num_processes
            check_not_collapsed(loop.metric("loss"), candidates, step + 1)
    if loop.is_main:
        loop.check_lock()
        with loop.ema_weights("pair"):
            save_clip(loop.module("pair"), tokenizer, run.train.output_dir)


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the symmetric contrastive loss (arXiv:2103.00020, fig. 3) and the in-batch accuracy.

    Args:
        image: unit-length image embeddings, ``[B, D]``.
        text: unit-length text embeddings, ``[B, D]``; row i belongs to image i.
        scale: the inverse temperature, a scalar.
    """
    logits = scale * image.float() @ text.float().T
    labels = torch.arange(len(logits), device=logits.device)
    loss = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    return loss, (logits.argmax(1) == labels).float().mean()


def _create_tokenizer(run: ClipPretrainConfig) -> "CLIPTokenizer":
    """Return the tokenizer of the weights that the run starts from, or a new one."""
    if run.train.start_from is None and run.merges_file is not None:
        return create_bpe_tokenizer(read_merges(run.merges_file, run.num_merges))
    return load_tokenizer(run.train.start_from or EMBEDDED)


def _create_clip(run: ClipPretrainConfig, vocab_size: int) -> ClipModel:
    if run.train.start_from is not None:
        return load_clip(run.train.start_from).requires_grad_(True).train()
    from transformers import CLIPTextConfig, CLIPTextModel

    text = run.text_encoder
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        projection_dim=run.projection_dim,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    image_encoder = _create_image_encoder(run)
    return ClipModel(CLIPTextModel(config), image_encoder)


def _create_image_encoder(run: ClipPretrainConfig) -> ImageEncoder:
    image = run.image_encoder
    if image.kind == "conv":
        return ConvImageEncoder(
            image.block_out_channels, image.layers_per_block, run.projection_dim
        )
    sizes = VitSizes(
        image_size=run.resolution,
        patch_size=image.patch_size,
        hidden_size=image.hidden_size,
        num_hidden_layers=image.num_hidden_layers,
        num_attention_heads=image.num_attention_heads,
        intermediate_size=image.intermediate_size,
    )
    return VitImageEncoder(sizes, run.projection_dim)


def _gather(embeddings: torch.Tensor, loop: PretrainLoop) -> torch.Tensor:
    """Gather the embeddings of all processes, with gradients, so that each sees all negatives."""
    if loop.accelerator.num_processes == 1:
        return embeddings
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeddings))  # type: ignore[no-untyped-call]


def check_not_collapsed(loss: float, batch_size: int, step: int) -> None:
    """Raise an error if the loss is at chance level, ln(batch_size).

    Raises:
        TrainingError: it is within 1% of it.
    """
    chance = math.log(batch_size)
    if abs(loss - chance) <= 0.01 * chance:
        raise TrainingError(
            f"the encoders collapsed: after {step} steps the loss is {loss:.3f}, chance is "
            f"{chance:.3f}; lower train.learning_rate or raise train.lr_warmup_steps, and start "
            "again"
        )
