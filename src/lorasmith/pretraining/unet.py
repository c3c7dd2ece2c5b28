"""Pretraining the U-Net on cached latents, in stages, with frozen or learning text."""

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
from lorasmith.models.load import load_network, load_text_encoder, load_tokenizer, suppress_logs
from lorasmith.models.noise import NoiseSchedule
from lorasmith.pretraining.captions import CaptionTable
from lorasmith.pretraining.common import chosen_rows, mirror_allowed, open_pictures, write_start
from lorasmith.pretraining.loop import Loop, Part

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The noise of Stable Diffusion 1.x."""


def pretrain_unet(run: UnetPretrainConfig, resume: bool = False) -> Path:
    """Train a U-Net; return the folder of a complete diffusers model around it.

    Raises:
        ConfigError: a stage's resolution or batch size is not possible.
        WeightsError: the autoencoder, text encoder and U-Net do not fit together.
    """
    loop = Loop(run.train, "U-Net", resume)
    rows, _ = chosen_rows(run.data)
    vae = _load_vae(run.vae).to(loop.device).requires_grad_(False).eval()
    text_encoder = load_text_encoder(run.text_encoder)
    tokenizer = load_tokenizer(run.text_encoder)
    _check_stages(run, vae, loop)
    write_start(loop, run, rows)
    torch.manual_seed(run.train.seed)
    unet = loop.add("unet", _new_unet(run, vae, int(text_encoder.config.hidden_size)), ema=True)
    if run.train_text_encoder:
        encoder: Any = loop.add("text_encoder", text_encoder, ema=True)
    else:
        encoder = text_encoder.to(loop.device).requires_grad_(False).eval()
    config = {**SCHEDULER, "prediction_type": run.prediction_type}
    loss = DenoisingLoss(
        run, unet, encoder, NoiseSchedule.from_scheduler(config, loop.device), loop
    )
    stage: StageConfig | None = None

    for step in loop.steps():
        now, within = stage_of(run.stages, step)
        if now is not stage:
            stage = now
            batches = Batches(run, stage, filter_rows(rows, stage.filters), vae, tokenizer, loop)
            learn = partial(loss.learn, batches)
        loop.learn(step, batches.order.get_batch(within), learn, variant=id(stage))
    if loop.main:
        _finish(run, loop, vae, text_encoder, tokenizer)
    return run.train.output_dir


def stage_of(stages: Sequence[StageConfig], step: int) -> tuple[StageConfig, int]:
    """Return the stage that step ``step`` of the whole run falls in, and the step within it."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError(f"step {step} lies beyond the last stage")


class Batches:
    """One stage's captions and latent moments (of mirror images too), on the device."""

    def __init__(
        self,
        run: UnetPretrainConfig,
        stage: StageConfig,
        rows: list[Row],
        vae: Any,
        tokenizer: Any,
        loop: Loop,
    ) -> None:
        self.captions = CaptionTable(tokenizer, rows, loop.device)
        self.mirrored = mirror_allowed(rows, run.data).to(loop.device)
        batch_size = loop.images_per_step(stage.batch_size or run.train.batch_size)
        self.order = WeightedBatchSampler(
            compute_row_weights(rows, run.data.weights), batch_size, run.train.seed
        )
        self.scale = float(vae.config.scaling_factor)
        pictures = open_pictures(rows, stage.resolution, run.data, loop)
        flips = (False, True) if bool(self.mirrored.any()) else (False,)
        with progress_bar("caching latents", len(rows) * len(flips), enabled=loop.main) as advance:
            self._moments = [_moments(vae, pictures, flip, advance) for flip in flips]

    def latents(self, part: Part) -> torch.Tensor:
        """Return scaled latents sampled from their posteriors, float32 ``[B, 4, h, w]``."""
        numbers = part.numbers
        moments = self._moments[0][numbers]
        if len(self._moments) == 2:
            flip = ((part.draws.uniform() < 0.5) & self.mirrored[numbers]).view(-1, 1, 1, 1)
            moments = torch.where(flip, self._moments[1][numbers], moments)
        mean, deviation = moments.float().chunk(2, dim=1)
        return (mean + deviation * part.draws.normal(*mean.shape[1:])) * self.scale


@torch.no_grad()
def _moments(vae: Any, pictures: SquareImages, flip: bool, advance: Any) -> torch.Tensor:
    """Return mean and deviation of every picture's posterior, float16 ``[N, 8, h, w]``."""
    parts = []
    for numbers in torch.split(torch.arange(len(pictures)), 64):
        shown = pictures.get_batch(numbers)
        posterior = vae.encode(shown.flip(-1) if flip else shown).latent_dist
        parts.append(torch.cat([posterior.mean, posterior.std], dim=1).half())
        advance(len(numbers))
    return torch.cat(parts)


@dataclass(frozen=True)
class DenoisingLoss:
    """The weighted mean squared error of the U-Net's prediction (arXiv:2006.11239, eq. 14)."""

    run: UnetPretrainConfig
    unet: Any
    encoder: Any
    noise: NoiseSchedule
    loop: Loop

    def learn(self, batches: Batches, part: Part) -> None:
        """Add the gradients of one part."""
        noise = self.noise
        clean = batches.latents(part)
        text = self._text(batches.captions, part)
        timesteps = part.draws.integers(noise.num_timesteps)
        added = part.draws.normal(*clean.shape[1:])
        noisy = noise.add_noise(clean, added, timesteps)
        predicted = self.unet(noisy, timesteps, text, return_dict=False)[0].float()
        wanted = noise.training_target(clean, added, timesteps)
        error = (predicted - wanted).square().mean(dim=(1, 2, 3))
        if self.run.min_snr_gamma > 0:
            error = error * noise.min_snr_weight(timesteps, self.run.min_snr_gamma)
        loss = error.mean()
        self.loop.backward(loss)
        self.loop.note(loss=loss)

    def _text(self, captions: CaptionTable, part: Part) -> torch.Tensor:
        run = self.run
        ids = captions.draw(
            part.numbers,
            part.draws,
            run.caption_dropout_rate,
            run.caption_truncation_rate,
            run.use_all_captions,
        )
        with self.loop.accelerator.autocast(), torch.set_grad_enabled(run.train_text_encoder):
            text: torch.Tensor = self.encoder(ids).last_hidden_state
        return text


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return load_network(AutoencoderKL, folder, "vae")


def _downscale(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _check_stages(run: UnetPretrainConfig, vae: Any, loop: Loop) -> None:
    factor = _downscale(vae)
    for number, stage in enumerate(run.stages):
        if stage.resolution % factor:
            raise ConfigError(
                f"stages.{number}.resolution: {stage.resolution} is not a multiple of {factor}, "
                "the autoencoder's down-sampling"
            )


def _new_unet(run: UnetPretrainConfig, vae: Any, text_width: int) -> Any:
    from diffusers import UNet2DConditionModel

    if run.train.start_from is not None:
        unet = load_network(UNet2DConditionModel, run.train.start_from, "unet").train()
        if int(unet.config.cross_attention_dim) != text_width:
            raise WeightsError(
                f"{run.train.start_from}: its U-Net takes text of width "
                f"{unet.config.cross_attention_dim}, the text encoder gives {text_width}"
            )
        return unet
    return UNet2DConditionModel(
        sample_size=run.stages[-1].resolution // _downscale(vae),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=tuple(run.architecture.block_out_channels),
        layers_per_block=run.architecture.layers_per_block,
        attention_head_dim=run.architecture.attention_head_dim,
        norm_num_groups=run.architecture.norm_num_groups,
        cross_attention_dim=text_width,
    )


def _finish(
    run: UnetPretrainConfig, loop: Loop, vae: Any, text_encoder: Any, tokenizer: Any
) -> None:
    """Save a complete diffusers model; beside an average, ``unet_without_ema`` too."""
    with suppress_logs():  # transformers warns about picture processors that are not used
        from diffusers import DDIMScheduler, StableDiffusionPipeline

    unet, out = loop.module("unet"), run.train.output_dir
    unet.eval()
    if loop.has_average("unet"):
        unet.save_pretrained(out / "unet_without_ema")
    scheduler = DDIMScheduler(**SCHEDULER, prediction_type=run.prediction_type)
    with suppress_logs(), ExitStack() as stack:
        for name in ("unet", "text_encoder"):
            if loop.has(name):
                stack.enter_context(loop.averaged(name))
        StableDiffusionPipeline(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
            scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(out)  # fmt: skip
