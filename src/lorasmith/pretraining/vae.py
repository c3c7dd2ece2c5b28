"""Pretraining the autoencoder: pixels, perception, a patch discriminator, KL or a codebook."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorasmith.config.pretrain import VaePretrainConfig
from lorasmith.core.errors import ConfigError
from lorasmith.data.batch_sampler import WeightedBatchSampler
from lorasmith.data.images.square_images import SquareImages, random_flip
from lorasmith.data.reading.filters import compute_row_weights
from lorasmith.models.image_encoder import load_image_encoder
from lorasmith.models.load import load_network
from lorasmith.pretraining.common import chosen_rows, mirror_allowed, open_pictures, write_start
from lorasmith.pretraining.loop import Loop, Part
from lorasmith.pretraining.vae_losses import (
    PatchDiscriminator,
    PerceptualLoss,
    balance,
    gradient_distance,
    hinge_discriminator,
    hinge_generator,
)


class KlAutoencoder(nn.Module):
    """A diffusers AutoencoderKL with its regularisation in one forward pass."""

    def __init__(self, vae: Any, weight: float, decoder_only: bool) -> None:
        super().__init__()
        self.vae = vae
        self.weight = weight
        self.decoder_only = decoder_only
        if decoder_only:
            for part in filter(None, (vae.encoder, vae.quant_conv)):
                part.requires_grad_(False)

    def forward(
        self, pictures: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions and the weighted KL divergence from a unit normal (a scalar).

        Args:
            pictures: ``[B, 3, H, W]`` in -1..1.
            noise: unit normal, in the latents' shape.
        """
        with torch.set_grad_enabled(not self.decoder_only and torch.is_grad_enabled()):
            moments = self.vae.encode(pictures).latent_dist
        latents = moments.mean + moments.std * noise
        divergence = 0.5 * (moments.mean.square() + moments.var - 1.0 - moments.logvar).float()
        return self.vae.decode(latents).sample, self.weight * divergence.sum(dim=(1, 2, 3)).mean()


class VqAutoencoder(nn.Module):
    """A diffusers VQModel with its codebook loss in one forward pass."""

    def __init__(self, vae: Any, weight: float) -> None:
        super().__init__()
        self.vae = vae
        self.weight = weight

    def forward(
        self, pictures: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions and the weighted codebook loss (a scalar); noise is not used."""
        latents = self.vae.encode(pictures).latents
        quantized, commitment, _ = self.vae.quantize(latents)
        decoded = self.vae.decode(quantized, force_not_quantize=True).sample
        return decoded, self.weight * commitment.mean()


def pretrain_vae(run: VaePretrainConfig, resume: bool = False) -> Path:
    """Train an autoencoder; return the folder that holds it as ``vae/``."""
    loop = Loop(run.train, "VAE", resume)
    rows, _ = chosen_rows(run.data)
    write_start(loop, run, rows)
    pictures = open_pictures(rows, run.resolution, run.data, loop)
    mirrored = mirror_allowed(rows, run.data).to(loop.device)
    torch.manual_seed(run.train.seed)
    coder = loop.add("coder", _new_coder(run), ema=True)
    judge = Judge(run, loop)
    images = loop.images_per_step(run.train.batch_size)
    order = WeightedBatchSampler(
        compute_row_weights(rows, run.data.weights), images, run.train.seed
    )
    latent_shape = _latent_shape(loop.module("coder").vae, run.resolution)

    def learn(part: Part) -> None:
        shown = random_flip(pictures.get_batch(part.numbers), mirrored[part.numbers], part.draws)
        made, regular = coder(shown, part.draws.normal(*latent_shape))
        loop.backward(judge.coder_loss(shown, made) + regular)
        judge.learn(shown, made)
        loop.note(regular=regular, **judge.figures)

    for step in loop.steps():
        judge.awake = judge.discriminator is not None and step >= run.loss.adversarial_start_step
        moved = ("coder", "discriminator") if judge.awake else ("coder",)
        loop.learn(step, order.get_batch(step), learn, variant=judge.awake, moved=moved)
    if loop.main:
        _finish(run, loop, pictures)
    return run.train.output_dir


class Judge:
    """All losses on a reconstruction, and the discriminator that learns beside it."""

    def __init__(self, run: VaePretrainConfig, loop: Loop) -> None:
        self.settings = run.loss
        self.loop = loop
        self.figures: dict[str, torch.Tensor] = {}
        self.perceptual: PerceptualLoss | None = None
        self.discriminator: nn.Module | None = None
        self.awake = False  # whether the discriminator takes part yet
        if run.loss.perceptual_weight > 0:
            tower = load_image_encoder(run.loss.perceptual_encoder).to(loop.device)
            self.perceptual = PerceptualLoss(tower)
        if run.loss.adversarial_weight > 0:
            self.discriminator = loop.add(
                "discriminator",
                PatchDiscriminator(run.loss.discriminator_channels),
                learning_rate=run.loss.discriminator_learning_rate,
            )

    def coder_loss(self, shown: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the reconstruction losses."""
        pixel = (shown - made).abs().mean()
        squared = (shown - made).square().mean()
        total = pixel
        if self.settings.gradient_weight > 0:
            total = total + self.settings.gradient_weight * gradient_distance(shown, made)
        if self.perceptual is not None:
            with self.loop.accelerator.autocast():
                distance = self.perceptual(shown, made)
            total = total + self.settings.perceptual_weight * distance
            self.figures["perceptual"] = distance
        # PSNR of pictures whose range is 2: 10 log10(2^2 / MSE)
        self.figures |= {"loss": pixel, "psnr": 10.0 * torch.log10(4.0 / squared)}
        if self.discriminator is None or not self.awake:
            return total
        self.discriminator.requires_grad_(False)
        adversarial = hinge_generator(self.discriminator(made))
        self.discriminator.requires_grad_(True)
        self.figures["adversarial"] = adversarial
        return (
            total
            + self.settings.adversarial_weight * balance(total, adversarial, made) * adversarial
        )

    def learn(self, shown: torch.Tensor, made: torch.Tensor) -> None:
        """Add the discriminator's gradients, once it takes part."""
        if self.discriminator is None or not self.awake:
            return
        real, fake = self.discriminator(torch.cat([shown, made.detach()])).chunk(2)
        loss = hinge_discriminator(real, fake)
        self.loop.backward(loss)
        self.figures["discriminator"] = loss


def _new_coder(run: VaePretrainConfig) -> nn.Module:
    from diffusers import AutoencoderKL, VQModel

    kl = run.loss.regularizer == "kl"
    if run.train.start_from is not None:
        vae = load_network(AutoencoderKL if kl else VQModel, run.train.start_from, "vae").train()
    else:
        count = len(run.architecture.block_out_channels)
        shape = {
            "block_out_channels": tuple(run.architecture.block_out_channels),
            "down_block_types": ("DownEncoderBlock2D",) * count,
            "up_block_types": ("UpDecoderBlock2D",) * count,
            "layers_per_block": run.architecture.layers_per_block,
            "latent_channels": run.architecture.latent_channels,
            "norm_num_groups": run.architecture.norm_num_groups,
            "sample_size": run.resolution,
        }
        vae = (
            AutoencoderKL(**shape)
            if kl
            else VQModel(**shape, num_vq_embeddings=run.loss.codebook_size)
        )
    if kl:
        return KlAutoencoder(vae, run.loss.kl_weight, run.loss.trainable_part == "decoder")
    return VqAutoencoder(vae, run.loss.commitment_weight)


def _latent_shape(vae: Any, resolution: int) -> tuple[int, int, int]:
    """Return channels, height and width of the latents of square pictures."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if resolution % factor:
        raise ConfigError(
            f"resolution: {resolution} is not a multiple of {factor}, the down-sampling"
        )
    return int(vae.config.latent_channels), resolution // factor, resolution // factor


@torch.no_grad()
def _finish(run: VaePretrainConfig, loop: Loop, pictures: SquareImages) -> None:
    """Measure the latents' scale on training pictures and save the averaged autoencoder.

    With an average, the plain weights go to ``vae_without_ema``.
    """
    vae = loop.module("coder").vae
    results: dict[str, AbstractContextManager[None]] = {}
    if loop.has_average("coder"):
        results["vae_without_ema"] = nullcontext()
    results["vae"] = loop.averaged("coder")
    for name, context in results.items():
        with context:
            if run.loss.trainable_part == "all":
                vae.register_to_config(scaling_factor=round(1.0 / latent_std(vae, pictures), 5))
            vae.save_pretrained(run.train.output_dir / name)


@torch.no_grad()
def latent_std(vae: Any, pictures: SquareImages, count: int = 2048) -> float:
    """Return the standard deviation of unscaled latents over up to ``count`` pictures.

    Its inverse is the scaling factor of latent diffusion (arXiv:2112.10752, app. G).
    """
    spread = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()
    latents = []
    for numbers in torch.split(spread, 64):
        coded = vae.encode(pictures.get_batch(numbers))
        latents.append(coded.latent_dist.mean if hasattr(coded, "latent_dist") else coded.latents)
    return float(torch.cat(latents).float().std())
