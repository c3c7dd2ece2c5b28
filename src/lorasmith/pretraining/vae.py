"""Pretraining of the autoencoder: pixel, perceptual and adversarial losses, KL or a codebook."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorasmith.config.pretrain import VaeLossConfig, VaePretrainConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.batch_sampler import WeightedBatchSampler
from lorasmith.data.images.square_images import SquareImages, random_flip
from lorasmith.data.reading.filters import compute_row_weights
from lorasmith.models.load import load_network
from lorasmith.pretraining.dataset import find_flippable, load_images, select_rows, write_run_files
from lorasmith.pretraining.loop import Microbatch, PretrainLoop, open_loop
from lorasmith.pretraining.perceptual.load import load_perceptual_loss
from lorasmith.pretraining.perceptual.loss import PerceptualLoss
from lorasmith.pretraining.vae_losses import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    image_gradient_loss,
)


class KlAutoencoder(nn.Module):
    """A diffusers AutoencoderKL with its regularization in one forward pass."""

    def __init__(self, vae: Any, weight: float, decoder_only: bool) -> None:
        super().__init__()
        self.vae = vae
        self.weight = weight
        self.decoder_only = decoder_only
        if decoder_only:
            for module in filter(None, (vae.encoder, vae.quant_conv)):
                module.requires_grad_(False)

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions and the weighted KL divergence from a unit normal (a scalar).

        Args:
            images: ``[B, 3, H, W]`` in -1..1.
            noise: unit normal, of the latents' shape.
        """
        with torch.set_grad_enabled(not self.decoder_only and torch.is_grad_enabled()):
            latent = self.vae.encode(images).latent_dist
        sample = latent.mean + latent.std * noise
        divergence = 0.5 * (latent.mean.square() + latent.var - 1.0 - latent.logvar).float()
        return self.vae.decode(sample).sample, self.weight * divergence.sum(dim=(1, 2, 3)).mean()


class VqAutoencoder(nn.Module):
    """A diffusers VQModel with its codebook loss in one forward pass."""

    def __init__(self, vae: Any, weight: float) -> None:
        super().__init__()
        self.vae = vae
        self.weight = weight

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions and the weighted codebook loss (a scalar); the noise is unused."""
        latents = self.vae.encode(images).latents
        quantized, codebook_loss, _ = self.vae.quantize(latents)
        reconstruction = self.vae.decode(quantized, force_not_quantize=True).sample
        return reconstruction, self.weight * codebook_loss.mean()


def pretrain_vae(run: VaePretrainConfig, resume: bool = False, break_lock: bool = False) -> Path:
    """Train an autoencoder; return the folder that holds it as ``vae/``."""
    with open_loop(run.train, "VAE", resume, break_lock) as loop:
        _train(run, loop)
    return run.train.output_dir


def _train(run: VaePretrainConfig, loop: PretrainLoop) -> None:
    """Train, and save the result."""
    rows, _ = select_rows(run.data)
    write_run_files(loop, run, rows)
    images = load_images(rows, run.resolution, run.data, loop)
    flippable = find_flippable(rows, run.data).to(loop.device)
    torch.manual_seed(run.train.seed)
    autoencoder = loop.add_module("coder", _create_autoencoder(run), ema=True)
    loss = ReconstructionLoss(run.loss, loop)
    sampler = WeightedBatchSampler(
        compute_row_weights(rows, run.data.weights),
        loop.images_per_step(run.train.batch_size),
        run.train.seed,
    )
    latent_shape = _latent_shape(loop.module("coder").vae, run.resolution)

    def compute_gradients(microbatch: Microbatch) -> None:
        indices, rng = microbatch.indices, microbatch.rng
        batch = random_flip(images.get_batch(indices), flippable[indices], rng)
        reconstruction, regularization = autoencoder(batch, rng.normal(*latent_shape))
        loop.backward(loss.compute(batch, reconstruction) + regularization)
        loss.train_discriminator(batch, reconstruction)
        loop.record_metrics(regular=regularization, **loss.metrics)

    for step in loop.steps():
        is_adversarial = loss.start_step(step)
        updated = ("coder", "discriminator") if is_adversarial else ("coder",)
        indices = sampler.get_batch(step)
        loop.train_step(step, indices, compute_gradients, is_adversarial, updated)
    if loop.is_main:
        loop.check_lock()
        _save_autoencoder(run, loop, images)


class ReconstructionLoss:
    """The losses of a reconstruction, and the discriminator that is trained beside it."""

    def __init__(self, settings: VaeLossConfig, loop: PretrainLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.metrics: dict[str, torch.Tensor] = {}
        self.perceptual: PerceptualLoss | None = None
        self.discriminator: nn.Module | None = None
        self.is_adversarial = False
        if settings.perceptual_weight > 0:
            self.perceptual = load_perceptual_loss(settings).to(loop.device)
        if settings.adversarial_weight > 0:
            self.discriminator = loop.add_module(
                "discriminator",
                PatchDiscriminator(settings.discriminator_channels),
                learning_rate=settings.discriminator_learning_rate,
            )

    def start_step(self, step: int) -> bool:
        """Prepare for a step; return whether the discriminator takes part in it."""
        has_started = step >= self.settings.adversarial_start_step
        self.is_adversarial = self.discriminator is not None and has_started
        return self.is_adversarial

    def compute(self, images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the reconstruction losses, a scalar."""
        settings = self.settings
        l1 = (images - reconstruction).abs().mean()
        mse = (images - reconstruction).square().mean()
        total = l1 + settings.mse_weight * mse
        if settings.gradient_weight > 0:
            total = total + settings.gradient_weight * image_gradient_loss(images, reconstruction)
        if self.perceptual is not None:
            with self.loop.accelerator.autocast():
                distance = self.perceptual(images, reconstruction)
            total = total + settings.perceptual_weight * distance
            self.metrics["perceptual"] = distance
        # PSNR of images with a range of 2: 10 log10(2^2 / MSE)
        self.metrics |= {"loss": l1, "psnr": 10.0 * torch.log10(4.0 / mse)}
        if self.discriminator is None or not self.is_adversarial:
            return total
        self.discriminator.requires_grad_(False)
        adversarial = hinge_generator_loss(self.discriminator(reconstruction))
        self.discriminator.requires_grad_(True)
        self.metrics["adversarial"] = adversarial
        weight = settings.adversarial_weight * adaptive_weight(total, adversarial, reconstruction)
        return total + weight * adversarial

    def train_discriminator(self, images: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add the discriminator's gradients if it takes part in this step."""
        if self.discriminator is None or not self.is_adversarial:
            return
        real, fake = self.discriminator(torch.cat([images, reconstruction.detach()])).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self.loop.backward(loss)
        self.metrics["discriminator"] = loss


def _create_autoencoder(run: VaePretrainConfig) -> nn.Module:
    from diffusers import AutoencoderKL, VQModel

    is_kl = run.loss.regularizer == "kl"
    if run.train.start_from is not None:
        kind = AutoencoderKL if is_kl else VQModel
        vae = load_network(kind, run.train.start_from, "vae").train()
    else:
        count = len(run.architecture.block_out_channels)
        config = {
            "block_out_channels": tuple(run.architecture.block_out_channels),
            "down_block_types": ("DownEncoderBlock2D",) * count,
            "up_block_types": ("UpDecoderBlock2D",) * count,
            "layers_per_block": run.architecture.layers_per_block,
            "latent_channels": run.architecture.latent_channels,
            "norm_num_groups": run.architecture.norm_num_groups,
            "sample_size": run.resolution,
        }
        if is_kl:
            vae = AutoencoderKL(**config)
        else:
            vae = VQModel(**config, num_vq_embeddings=run.loss.codebook_size)
    if is_kl:
        return KlAutoencoder(vae, run.loss.kl_weight, run.loss.trainable_part == "decoder")
    return VqAutoencoder(vae, run.loss.commitment_weight)


def _latent_shape(vae: Any, resolution: int) -> tuple[int, int, int]:
    """Return channels, height and width of the latents of square images."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if resolution % factor:
        raise ConfigError(
            f"resolution: {resolution} is not a multiple of {factor}, the VAE's scale factor"
        )
    return int(vae.config.latent_channels), resolution // factor, resolution // factor


@torch.no_grad()
def _save_autoencoder(run: VaePretrainConfig, loop: PretrainLoop, images: SquareImages) -> None:
    """Measure the latents' scale on training images and save the autoencoder as ``vae``.

    If there are averaged weights, the plain ones are saved as ``vae_without_ema``.
    """
    vae = loop.module("coder").vae
    folders: dict[str, AbstractContextManager[None]] = {}
    if loop.has_ema("coder"):
        folders["vae_without_ema"] = nullcontext()
    folders["vae"] = loop.ema_weights("coder")
    for name, weights in folders.items():
        with weights:
            if run.loss.trainable_part == "all":
                vae.register_to_config(scaling_factor=round(1.0 / latent_std(vae, images), 5))
            vae.save_pretrained(run.train.output_dir / name)


@torch.no_grad()
def latent_std(vae: Any, images: SquareImages, max_images: int = 2048) -> float:
    """Return the standard deviation of unscaled latents over evenly chosen images.

    Its inverse is the scaling factor of latent diffusion (arXiv:2112.10752, app. G).
    """
    chosen = torch.linspace(0, len(images) - 1, min(max_images, len(images))).long()
    latents = []
    for indices in torch.split(chosen, 64):
        output = vae.encode(images.get_batch(indices))
        is_kl = hasattr(output, "latent_dist")
        latents.append(output.latent_dist.mean if is_kl else output.latents)
    return float(torch.cat(latents).float().std())
