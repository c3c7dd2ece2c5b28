"""Pretraining of the U-Net on cached latents, in stages, with a frozen or trained text encoder."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorasmith.config.pretrain import StageConfig, UnetPretrainConfig
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.data.batch_sampler import WeightedBatchSampler
from lorasmith.data.images.square_images import SquareImages
from lorasmith.data.reading.filters import compute_row_weights, filter_rows
from lorasmith.data.reading.row import Row
from lorasmith.loops.progress import progress_bar
from lorasmith.models.load import load_network, load_text_encoder, load_tokenizer
from lorasmith.models.noise_schedule import NoiseSchedule
from lorasmith.models.suppress_logs import suppress_logs
from lorasmith.pretraining.captions import CaptionTable
from lorasmith.pretraining.dataset import find_flippable, load_images, select_rows, write_run_files
from lorasmith.pretraining.loop import Microbatch, PretrainLoop, open_loop
from lorasmith.pretraining.noise import (
    make_scheduler_config,
    warn_of_other_noise,
    warn_of_unweighted_level,
)


def pretrain_unet(run: UnetPretrainConfig, resume: bool = False, break_lock: bool = False) -> Path:
    """Train a U-Net; return the folder of a complete diffusers model with it.

    Raises:
        ConfigError: a stage's resolution or the noise schedule is not possible.
        WeightsError: the autoencoder, text encoder and U-Net do not fit together.
    """
    with open_loop(run.train, "U-Net", resume, break_lock) as loop:
        _train(run, loop)
    return run.train.output_dir


def _train(run: UnetPretrainConfig, loop: PretrainLoop) -> None:
    """Train, and save the result."""
    noise_schedule = NoiseSchedule.from_scheduler(make_scheduler_config(run), loop.device)
    if loop.is_main:
        warn_of_unweighted_level(run)
        warn_of_other_noise(run)
    rows, _ = select_rows(run.data)
    vae = _load_vae(run.vae).to(loop.device).requires_grad_(False).eval()
    text_encoder = load_text_encoder(run.text_encoder)
    tokenizer = load_tokenizer(run.text_encoder)
    _check_stages(run, vae)
    write_run_files(loop, run, rows)
    torch.manual_seed(run.train.seed)
    text_dim = int(text_encoder.config.hidden_size)
    unet = loop.add_module("unet", _create_unet(run, vae, text_dim), ema=True)
    if run.train_text_encoder:
        encoder: Any = loop.add_module("text_encoder", text_encoder, ema=True)
    else:
        encoder = text_encoder.to(loop.device).requires_grad_(False).eval()
    loss = DenoisingLoss(run, unet, encoder, noise_schedule, loop)
    current: StageConfig | None = None
    for step in loop.steps():
        stage, stage_step = find_stage(run.stages, step)
        if stage is not current:
            current = stage
            data = StageData(run, stage, filter_rows(rows, stage.filters), vae, tokenizer, loop)
            compute_gradients = partial(loss.compute_gradients, data)
        indices = data.sampler.get_batch(stage_step)
        loop.train_step(step, indices, compute_gradients, variant=id(stage))
    if loop.is_main:
        loop.check_lock()
        _save_model(run, loop, vae, text_encoder, tokenizer)


def find_stage(stages: Sequence[StageConfig], step: int) -> tuple[StageConfig, int]:
    """Return the stage that a step of the full run belongs to, and its index within the stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError(f"step {step} is after the last stage")


class StageData:
    """One stage's captions and latent distributions (of flipped images too), on the device."""

    def __init__(
        self,
        run: UnetPretrainConfig,
        stage: StageConfig,
        rows: list[Row],
        vae: Any,
        tokenizer: Any,
        loop: PretrainLoop,
    ) -> None:
        self.captions = CaptionTable(tokenizer, rows, loop.device)
        self.flippable = find_flippable(rows, run.data).to(loop.device)
        batch_size = loop.images_per_step(stage.batch_size or run.train.batch_size)
        self.sampler = WeightedBatchSampler(
            compute_row_weights(rows, run.data.weights), batch_size, run.train.seed
        )
        self.scaling_factor = float(vae.config.scaling_factor)
        images = load_images(rows, stage.resolution, run.data, loop)
        flips = (False, True) if bool(self.flippable.any()) else (False,)
        count = len(rows) * len(flips)
        with progress_bar("caching latents", count, enabled=loop.is_main) as advance:
            self._moments = [_encode_moments(vae, images, flip, advance) for flip in flips]

    def sample_latents(self, microbatch: Microbatch) -> torch.Tensor:
        """Return scaled latents sampled from their distributions, float32 ``[B, 4, h, w]``."""
        indices, rng = microbatch.indices, microbatch.rng
        moments = self._moments[0][indices]
        if len(self._moments) == 2:
            flip = ((rng.uniform() < 0.5) & self.flippable[indices]).view(-1, 1, 1, 1)
            moments = torch.where(flip, self._moments[1][indices], moments)
        mean, std = moments.float().chunk(2, dim=1)
        return (mean + std * rng.normal(*mean.shape[1:])) * self.scaling_factor


@torch.no_grad()
def _encode_moments(vae: Any, images: SquareImages, flip: bool, advance: Any) -> torch.Tensor:
    """Return mean and deviation of each image's latent distribution, float16 ``[N, 8, h, w]``."""
    moments = []
    for indices in torch.split(torch.arange(len(images)), 64):
        batch = images.get_batch(indices)
        distribution = vae.encode(batch.flip(-1) if flip else batch).latent_dist
        moments.append(torch.cat([distribution.mean, distribution.std], dim=1).half())
        advance(len(indices))
    return torch.cat(moments)


@dataclass(frozen=True)
class DenoisingLoss:
    """The weighted mean squared error of the U-Net's prediction (arXiv:2006.11239, eq. 14)."""

    run: UnetPretrainConfig
    unet: Any
    text_encoder: Any
    noise_schedule: NoiseSchedule
    loop: PretrainLoop

    def compute_gradients(self, data: StageData, microbatch: Microbatch) -> None:
        """Add the gradients of a microbatch."""
        schedule, rng = self.noise_schedule, microbatch.rng
        latents = data.sample_latents(microbatch)
        text = self._encode_captions(data.captions, microbatch)
        timesteps = rng.integers(schedule.num_timesteps)
        noise = rng.normal(*latents.shape[1:])
        noisy = schedule.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy, timesteps, text, return_dict=False)[0].float()
        target = schedule.training_target(latents, noise, timesteps)
        error = (prediction - target).square().mean(dim=(1, 2, 3))
        if self.run.min_snr_gamma > 0:
            error = error * schedule.min_snr_weight(timesteps, self.run.min_snr_gamma)
        loss = error.mean()
        self.loop.backward(loss)
        self.loop.record_metrics(loss=loss)

    def _encode_captions(self, captions: CaptionTable, microbatch: Microbatch) -> torch.Tensor:
        run = self.run
        input_ids = captions.sample(
            microbatch.indices,
            microbatch.rng,
            run.caption_dropout_rate,
            run.caption_truncation_rate,
            run.use_all_captions,
        )
        with self.loop.accelerator.autocast(), torch.set_grad_enabled(run.train_text_encoder):
            text: torch.Tensor = self.text_encoder(input_ids).last_hidden_state
        return text


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return load_network(AutoencoderKL, folder, "vae")


def _vae_scale_factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_stages(run: UnetPretrainConfig, vae: Any) -> None:
    factor = _vae_scale_factor(vae)
    for index, stage in enumerate(run.stages):
        if stage.resolution % factor:
            raise ConfigError(
                f"stages.{index}.resolution: {stage.resolution} is not a multiple of {factor}, "
                "the VAE's scale factor"
            )


def _create_unet(run: UnetPretrainConfig, vae: Any, text_dim: int) -> Any:
    from diffusers import UNet2DConditionModel

    if run.train.start_from is not None:
        unet = load_network(UNet2DConditionModel, run.train.start_from, "unet").train()
        if int(unet.config.cross_attention_dim) != text_dim:
            raise WeightsError(
                f"{run.train.start_from}: its U-Net has cross_attention_dim "
                f"{unet.config.cross_attention_dim}, the text encoder has hidden_size {text_dim}"
            )
        return unet
    return UNet2DConditionModel(
        sample_size=run.stages[-1].resolution // _vae_scale_factor(vae),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=tuple(run.architecture.block_out_channels),
        layers_per_block=run.architecture.layers_per_block,
        attention_head_dim=run.architecture.attention_head_dim,
        norm_num_groups=run.architecture.norm_num_groups,
        cross_attention_dim=text_dim,
    )


def _save_model(
    run: UnetPretrainConfig, loop: PretrainLoop, vae: Any, text_encoder: Any, tokenizer: Any
) -> None:
    """Save a complete diffusers model with averaged weights, and ``unet_without_ema`` beside it."""
    with suppress_logs():  # transformers warns about image processors that are not used
        from diffusers import DDIMScheduler, StableDiffusionPipeline

    unet, output_dir = loop.module("unet"), run.train.output_dir
    unet.eval()
    if loop.has_ema("unet"):
        unet.save_pretrained(output_dir / "unet_without_ema")
    scheduler = DDIMScheduler(**make_scheduler_config(run))
    with suppress_logs(), ExitStack() as stack:
        for name in ("unet", "text_encoder"):
            if loop.has_module(name):
                stack.enter_context(loop.ema_weights(name))
        StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
            scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(output_dir)  # fmt: skip
