"""Contrastive pretraining of the text and image towers."""

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
from lorasmith.models.image_encoder import (
    ClipModel,
    ImageEncoder,
    load_clip,
    load_tokenizer,
    save_clip,
)
from lorasmith.models.load import EMBEDDED
from lorasmith.models.text.tokenizer import create_bpe_tokenizer, read_merges
from lorasmith.pretraining.augment import jitter_colours, shift_and_scale
from lorasmith.pretraining.captions import CaptionTable
from lorasmith.pretraining.common import chosen_rows, mirror_allowed, open_pictures, write_start
from lorasmith.pretraining.loop import Loop, Part

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

COLLAPSE_AFTER = 300
"""Steps after which a loss still at chance means that the towers collapsed."""


def pretrain_clip(run: ClipPretrainConfig, resume: bool = False) -> Path:
    """Train both towers; return the folder with text_encoder, tokenizer and image_tower.

    Raises:
        TrainingError: the loss is within 1% of ln(batch) after 300 steps: the towers collapsed.
    """
    loop = Loop(run.train, "CLIP", resume)
    rows, _ = chosen_rows(run.data)
    write_start(loop, run, rows)
    pictures = open_pictures(rows, run.resolution, run.data, loop)
    mirrored = mirror_allowed(rows, run.data).to(loop.device)
    tokenizer = _tokenizer(run)
    captions = CaptionTable(tokenizer, rows, loop.device)
    torch.manual_seed(run.train.seed)
    pair = loop.add("pair", _new_pair(run, len(tokenizer)), ema=True)
    images = loop.images_per_step(run.train.batch_size)
    order = WeightedBatchSampler(
        compute_row_weights(rows, run.data.weights), images, run.train.seed
    )

    def learn(part: Part) -> None:
        shown = pictures.get_batch(part.numbers)
        shown = random_flip(shown, mirrored[part.numbers], part.draws)
        shown = shift_and_scale(shown, run.random_shift, part.draws)
        shown = jitter_colours(shown, run.color_jitter, part.draws)
        image, text, scale = pair(shown, captions.draw(part.numbers, part.draws))
        loss, accuracy = contrastive_loss(_everyone(image, loop), _everyone(text, loop), scale)
        loop.backward(loss)
        loop.note(loss=loss, accuracy=accuracy)

    for step in loop.steps():
        loop.learn(step, order.get_batch(step), learn)
        if step + 1 == COLLAPSE_AFTER:
            compared = run.train.batch_size * loop.accelerator.num_processes
            _check_alive(loop.figure("loss"), compared, step + 1)
    if loop.main:
        with loop.averaged("pair"):
            save_clip(loop.module("pair"), tokenizer, run.train.output_dir)
    return run.train.output_dir


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


def _tokenizer(run: ClipPretrainConfig) -> "CLIPTokenizer":
    """Return the tokenizer of the weights that the run starts from, or a new one."""
    if run.train.start_from is None and run.merges_file is not None:
        return create_bpe_tokenizer(read_merges(run.merges_file, run.num_merges))
    return load_tokenizer(run.train.start_from or EMBEDDED)


def _new_pair(run: ClipPretrainConfig, vocabulary: int) -> ClipModel:
    if run.train.start_from is not None:
        return load_clip(run.train.start_from).requires_grad_(True).train()
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = run.text_encoder
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        projection_dim=run.projection_dim,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    image = ImageEncoder(
        run.image_encoder.block_out_channels, run.image_encoder.layers_per_block, run.projection_dim
    )
    return ClipModel(CLIPTextModel(config), image)


def _everyone(embeddings: torch.Tensor, loop: Loop) -> torch.Tensor:
    """Gather embeddings of all processes, with gradients, so that each sees all negatives."""
    if loop.accelerator.num_processes == 1:
        return embeddings
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeddings))  # type: ignore[no-untyped-call]


def _check_alive(loss: float, batch_size: int, step: int) -> None:
    chance = math.log(batch_size)
    if abs(loss - chance) <= 0.01 * chance:
        raise TrainingError(
            f"the towers collapsed: after {step} steps the loss is {loss:.3f}, chance is "
            f"{chance:.3f}; lower train.learning_rate or raise train.lr_warmup_steps, and start again"
        )
