"""Settings of the three pretraining commands."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lorasmith.config.base import BaseConfig, Positive, Side, UserPath
from lorasmith.config.data import PretrainDataConfig, RowFilter
from lorasmith.config.optimization import LrSchedulerName, MixedPrecision

IMAGE_ENCODER_NORM_GROUPS = 8
"""Groups of the image encoder's group normalisation."""


def _require_groups(channels: tuple[int, ...], groups: int) -> None:
    for width in channels:
        if width % groups:
            raise ValueError(f"block_out_channels: {width} does not divide into {groups} groups")


def _require_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"hidden_size {width} does not divide into {heads} heads")


class PretrainTrainerConfig(BaseConfig):
    """The training loop."""

    output_dir: UserPath
    """Folder for the result, its log and its checkpoints."""
    steps: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Images that one process takes at once. A step takes this times
    `gradient_accumulation_steps` times the number of processes."""
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=65536)] = 1
    """How many batches of each process add up to one optimizer step."""
    learning_rate: float = Field(gt=0.0)
    """Peak learning rate of AdamW."""
    lr_scheduler: LrSchedulerName = "cosine"
    """How the learning rate falls after the warm-up."""
    lr_warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises from zero."""
    lr_scheduler_min_lr_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    """Ratio of the last learning rate to the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decoupled weight decay, on matrices and kernels only."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm; larger gradients are scaled down to it."""
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of an exponential moving average of the weights, which is then saved; 0 for none."""
    mixed_precision: MixedPrecision = "fp32"
    """Mixed precision of accelerate. The weights stay float32."""
    compile: bool = False
    """Compile the network with torch.compile: a slow start, then faster steps on a GPU."""
    cuda_graph: bool = False
    """Capture the full step as a CUDA graph: much faster for small networks on one GPU."""
    seed: int = 0
    """Seed of initial weights, data order and noise."""
    log_every_n_steps: Positive = 20
    """Steps between two lines of the log. Losses are read from the device only then."""
    checkpoint_every_n_steps: Positive = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = 2
    """How many checkpoints stay on disk."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` keeps the run off the GPU."""
    stop_after_minutes: float | None = Field(default=None, gt=0.0)
    """Save a checkpoint and stop after so many minutes; --resume continues."""
    start_from: UserPath | None = None
    """A folder with weights to start from instead of random ones (also the option --from)."""


class VaeArchitecture(BaseConfig):
    """The autoencoder, in the terms of diffusers' AutoencoderKL."""

    block_out_channels: tuple[Positive, ...] = (48, 96, 128, 128)
    """Width of each block; n blocks scale down by 2^(n-1)."""
    layers_per_block: Positive = 1
    """Residual layers per block."""
    norm_num_groups: Positive = 16
    """Groups of the group normalisation."""
    latent_channels: Positive = 4
    """Channels of the latents."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        _require_groups(self.block_out_channels, self.norm_num_groups)
        return self


class VaeLossConfig(BaseConfig):
    """The losses of the autoencoder."""

    perceptual_weight: float = Field(default=0.1, ge=0.0)
    """Weight of the distance between image encoder features; 0 for none."""
    perceptual_encoder: UserPath | None = None
    """Folder of the image encoder for it (a result of `pretrain clip`), or a safetensors file with
    VGG-16, VGG-19, ResNet-18, ResNet-34 or ResNet-50 in torchvision's names or a ViT in timm's;
    left out, the embedded image encoder."""
    perceptual_layer_weights: dict[str, Annotated[float, Field(ge=0.0, le=1e6)]] = Field(
        default_factory=dict
    )
    """Weight of each layer by name, such as `{ relu1_2 = 0.1, relu3_3 = 1.0 }`; layers that are
    not named do not count. Left out, all count alike (docs/pretraining.md lists the names)."""
    perceptual_lpips_heads: UserPath | None = None
    """A safetensors file with the linear heads of LPIPS for that encoder (`lin0.model.1.weight`,
    ...). Heads in the file of `perceptual_encoder` are used without it."""
    mse_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the mean squared error, beside the L1 distance, whose weight is 1."""
    gradient_weight: float = Field(default=0.0, ge=0.0)
    """Weight of an L1 distance between image gradients at three scales."""
    adversarial_weight: float = Field(default=0.05, ge=0.0)
    """Weight of the patch discriminator, relative to the reconstruction's gradient; 0 for none."""
    adversarial_start_step: int = Field(default=2000, ge=0)
    """Step at which the discriminator starts."""
    discriminator_channels: int = Field(default=32, gt=0, multiple_of=4)
    """Width of the discriminator's first layer."""
    discriminator_learning_rate: float = Field(default=2e-4, gt=0.0)
    """Its learning rate."""
    regularizer: Literal["kl", "vq"] = "kl"
    """Keep latents near a unit normal (kl) or snap them to a codebook (vq)."""
    trainable_part: Literal["all", "decoder"] = "all"
    """`decoder` keeps the encoder, so that latents (and a U-Net made for them) stay valid."""
    kl_weight: float = Field(default=1e-6, ge=0.0)
    """Weight of the KL term."""
    codebook_size: Positive = 4096
    """Entries of the codebook with regularizer vq."""
    commitment_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the codebook loss (both halves) with regularizer vq."""


class VaePretrainConfig(BaseConfig):
    """Everything about one `lorasmith pretrain vae` run."""

    data: PretrainDataConfig
    """The images; captions are not used."""
    train: PretrainTrainerConfig
    """The training loop."""
    architecture: VaeArchitecture = VaeArchitecture()
    """The network."""
    loss: VaeLossConfig = VaeLossConfig()
    """The losses."""
    resolution: Side = 128
    """Side of the training images in pixels."""

    @model_validator(mode="after")
    def _decoder_has_an_encoder(self) -> Self:
        if self.loss.trainable_part == "decoder":
            if self.loss.regularizer == "vq":
                raise ValueError("loss.trainable_part: decoder works with regularizer kl only")
            if self.train.start_from is None:
                raise ValueError(
                    "loss.trainable_part: decoder keeps the encoder of existing weights; name them "
                    "with train.start_from or --from"
                )
        return self


class TextEncoderArchitecture(BaseConfig):
    """The text encoder, in the terms of transformers' CLIPTextConfig."""

    hidden_size: Positive = 256
    """Width of the hidden states; the U-Net's cross_attention_dim."""
    num_hidden_layers: Positive = 4
    """Transformer layers."""
    num_attention_heads: Positive = 4
    """Attention heads."""
    intermediate_size: Positive = 1024
    """Width inside the feed-forward layers."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _require_heads(self.hidden_size, self.num_attention_heads)
        return self


class ImageEncoderArchitecture(BaseConfig):
    """The image encoder: a small residual convolutional network or a vision transformer (ViT)."""

    kind: Literal["conv", "vit"] = "conv"
    """conv is quicker to learn from few images; vit is the transformer of OpenAI's CLIP."""
    block_out_channels: tuple[Positive, ...] = (32, 64, 120, 176)
    """With kind conv: width of each stage; each stage halves the side of the image."""
    layers_per_block: tuple[Positive, ...] = (1, 2, 2, 1)
    """With kind conv: residual blocks of each stage."""
    patch_size: Positive = 16
    """With kind vit: side of a patch in pixels; `resolution` is a multiple of it."""
    hidden_size: Positive = 192
    """With kind vit: width of the hidden states."""
    num_hidden_layers: Positive = 6
    """With kind vit: transformer layers."""
    num_attention_heads: Positive = 3
    """With kind vit: attention heads."""
    intermediate_size: Positive = 768
    """With kind vit: width inside the feed-forward layers."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        _require_groups(self.block_out_channels, IMAGE_ENCODER_NORM_GROUPS)
        if len(self.block_out_channels) != len(self.layers_per_block):
            raise ValueError(
                f"block_out_channels has {len(self.block_out_channels)} stages but "
                f"layers_per_block has {len(self.layers_per_block)}"
            )
        _require_heads(self.hidden_size, self.num_attention_heads)
        return self


class ClipPretrainConfig(BaseConfig):
    """Everything about one `lorasmith pretrain clip` run."""

    data: PretrainDataConfig
    """The captioned images."""
    train: PretrainTrainerConfig
    """The training loop."""
    text_encoder: TextEncoderArchitecture = TextEncoderArchitecture()
    """The text encoder."""
    image_encoder: ImageEncoderArchitecture = ImageEncoderArchitecture()
    """The image encoder."""
    projection_dim: Positive = 256
    """Width of the joint embedding space."""
    merges_file: UserPath | None = None
    """A CLIP byte-pair merge list for a new tokenizer; none reuses the embedded model's."""
    num_merges: Positive = 7678
    """How many of its merges are kept; the vocabulary is 514 larger."""
    resolution: Side = 128
    """Side of the training images in pixels."""
    random_shift: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Images are scaled and shifted at random by up to this share of their side."""
    color_jitter: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Brightness and contrast are changed at random by up to this share."""

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        image = self.image_encoder
        if image.kind == "vit" and self.resolution % image.patch_size:
            raise ValueError(
                f"resolution: {self.resolution} is not a multiple of image_encoder.patch_size "
                f"{image.patch_size}"
            )
        return self


class UnetArchitecture(BaseConfig):
    """The U-Net, in the terms of diffusers' UNet2DConditionModel, with SD 1.x block types."""

    block_out_channels: tuple[Positive, Positive, Positive, Positive] = (64, 96, 128, 160)
    """Width of the four levels."""
    layers_per_block: Positive = 2
    """Residual layers per block."""
    attention_head_dim: Positive = 8
    """Attention heads (diffusers calls this attention_head_dim)."""
    norm_num_groups: Positive = 32
    """Groups of the group normalisation."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        _require_groups(self.block_out_channels, self.norm_num_groups)
        return self


class NoiseConfig(BaseConfig):
    """The noise schedule, in the terms of diffusers' schedulers; Stable Diffusion 1.x's unless
    changed. It is stored in the model, and whatever uses the model reads it there."""

    num_train_timesteps: int = Field(default=1000, ge=2, le=10_000)
    """Noise levels."""
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"
    """How beta, the noise that a level adds, grows: its root evenly (scaled_linear), itself evenly
    (linear), or by a squared cosine, which ignores `beta_start` and `beta_end`
    (squaredcos_cap_v2)."""
    beta_start: float = Field(default=0.00085, gt=0.0, lt=1.0)
    """Beta of the first level."""
    beta_end: float = Field(default=0.012, gt=0.0, lt=1.0)
    """Beta of the last level."""
    rescale_betas_zero_snr: bool = False
    """Rescale the noise so that the last level holds no signal (zero terminal SNR,
    arXiv:2305.08891), for images that are dark or bright all over. Takes `prediction_type`
    v_prediction or sample."""

    @model_validator(mode="after")
    def _noise_grows(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start {self.beta_start:g} is larger than beta_end {self.beta_end:g}; noise "
                "must grow with the timestep"
            )
        return self


class StageConfig(BaseConfig):
    """One stage of U-Net pretraining."""

    resolution: Side
    """Side of the training images in pixels."""
    steps: Positive
    """Optimizer steps of this stage."""
    batch_size: Positive | None = None
    """Images that one process takes at once in this stage; none takes `train.batch_size`."""
    filters: tuple[RowFilter, ...] = ()
    """Only rows that pass all of these take part in this stage."""


class UnetPretrainConfig(BaseConfig):
    """Everything about one `lorasmith pretrain unet` run."""

    data: PretrainDataConfig
    """The captioned images."""
    train: PretrainTrainerConfig
    """The training loop; its `steps` must be the sum of the stages'."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """Stages, one after the other, as the original Stable Diffusion was trained."""
    vae: UserPath
    """Folder of the autoencoder (or of a model that has one)."""
    text_encoder: UserPath
    """Folder with the text encoder and tokenizer (or of a model that has them)."""
    architecture: UnetArchitecture = UnetArchitecture()
    """The network."""
    noise: NoiseConfig = NoiseConfig()
    """The noise schedule."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network predicts: the noise, v (arXiv:2202.00512), or the clean latents (x0)."""
    min_snr_gamma: float = Field(default=5.0, ge=0.0)
    """Gamma of min-SNR loss weighting; 0 weighs all timesteps equally."""
    caption_dropout_rate: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of captions that are replaced by an empty one, for classifier-free guidance."""
    caption_truncation_rate: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of captions cut at their first comma, so that short prompts work."""
    use_all_captions: bool = True
    """Sample among all captions of an image, not only the first."""
    train_text_encoder: bool = False
    """Also train the text encoder, with the same learning rate."""

    @model_validator(mode="after")
    def _prediction_is_possible(self) -> Self:
        if self.noise.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "noise.rescale_betas_zero_snr makes the last noise level pure noise, where "
                "predicting the noise (epsilon) says nothing about the image; set "
                "prediction_type to v_prediction or sample"
            )
        return self

    @model_validator(mode="after")
    def _steps_add_up(self) -> Self:
        total = sum(stage.steps for stage in self.stages)
        if total != self.train.steps:
            raise ValueError(
                f"train.steps is {self.train.steps} but the stages' steps add up to {total}"
            )
        return self
