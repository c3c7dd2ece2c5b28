"""What kohya's sd-scripts, diffusers, PEFT and OneTrainer call our settings.

A name with the same meaning is accepted wherever a setting can be given: in a settings file, with
``--set`` and as an option. Any other name has an answer that says what to do instead.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lorasmith.config.reading.network_args import translate_network_args
from lorasmith.core.errors import ConfigError

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class ForeignName:
    """How a foreign name is translated; without ``translate`` it is only explained."""

    key: str
    """The setting here, or an empty string where there is none."""
    translate: Callable[[Any], Changes] | None = None
    """Turns its value into settings by their dotted keys."""
    answer: str = ""
    """What to do instead, where it cannot be translated."""


def _same(key: str, convert: Callable[[Any], Any] = lambda value: value) -> ForeignName:
    return ForeignName(key, lambda value: {key: convert(value)})


def _flag(key: str, when_on: Any, answer: str = "") -> ForeignName:
    """Return a name whose value is true or false; false changes nothing."""
    return ForeignName(key, lambda on: {key: when_on} if _is_on(on) else {}, answer)


def _no(answer: str, key: str = "") -> ForeignName:
    return ForeignName(key, None, answer)


def _is_on(value: Any) -> bool:
    return value is True or str(value).casefold() in ("true", "1", "yes", "on")


def _choose(on: Any, off: Any) -> Callable[[Any], Any]:
    return lambda value: on if _is_on(value) else off


def _trackers(value: Any) -> Changes:
    names = {str(value).casefold()}
    if "all" in names:
        names = {"tensorboard", "wandb"}
    unknown = names - {"tensorboard", "wandb", "none"}
    if unknown:
        raise ConfigError(f"there is no tracker {value!r}; choose from tensorboard, wandb")
    return {"track.tensorboard": "tensorboard" in names, "track.wandb": "wandb" in names}


def _only(accepted: Collection[str], answer: str) -> ForeignName:
    """Return a name that may be given with the value that always holds here."""

    def check(value: Any) -> Changes:
        if str(value).casefold() not in accepted:
            raise ConfigError(answer)
        return {}

    return ForeignName("", check, answer)


def _init(value: Any) -> Any:
    return {"true": "kaiming", "false": "gaussian"}.get(str(value).casefold(), value)


EPOCHS = (
    "epochs are not supported; set train.steps = epochs x training images x repeats / effective "
    "batch size"
)
_BUCKET_LIMITS = (
    "buckets have about as many pixels as data.resolution squared; set data.max_aspect_ratio, and "
    "data.bucket_reso_steps"
)
_ADAM = (
    "give it in train.optimizer_args, such as train.optimizer_args={betas=[0.9, 0.99], eps=1e-8}"
)
_ATTENTION = "leave it out: attention is always memory-efficient"
_MODEL_KIND = "leave it out: the kind of model is read from its files"
_TARGETS = (
    "say which layers are trained with lora.targets, such as all-linear or "
    '["all-linear", "text-encoder"]'
)

_LOSS = (
    "the loss is the squared error; another one is given from Python, lorasmith.train(loss_fn=...)"
)
_NOISE = "leave it out: the noise can have an offset, train.loss.noise_offset, and nothing else"
_WORKERS = "leave it out: how images are read is not set"
_LORA_START = "a run starts from new factors; --resume continues a run"
_ALL_LEVELS = "leave it out: all noise levels are trained"
_UPLOAD = "nothing is uploaded; leave it out"
_MEMORY = 'set train.vram_limit, such as "8GB"'
_COLUMNS = "a metadata.jsonl in the folder of images has file_name and text"
_SETTINGS_FILE = "give the file without an option: lorasmith train RUN.toml"
_PROCESSES = "start the command with accelerate launch --num_processes N -m lorasmith train"
_CONV = (
    'convolutions are trained with lora.targets = ["all-linear", "+conv"]; [[lora.overrides]] '
    "gives them a rank or alpha of their own"
)
_RUN_NAME = "leave it out: a run has the name of its LoRA, output.name"
_DROPOUT = "the adapters have one kind of dropout: lora.dropout"
_CAPTION_DROPOUT = "whole captions are dropped, with data.caption_dropout_rate"

FOREIGN_NAMES: Mapping[str, ForeignName] = {
    # --- the model and the files
    "pretrained_model_name_or_path": _same("model.path"),
    "base_model_name": _same("model.path"),
    "base_model": _same("model.path"),
    "train_data_dir": _same("data.path"),
    "instance_data_dir": _same("data.path"),
    "image_dir": _same("data.path"),
    "dataset_name": _no("name a folder of images with data.path", "data.path"),
    "datasets": _no(
        "give the keys of a dataset in [data], or a [[feature]] table for each trigger word", "data"
    ),
    "concepts": _no("give a [[feature]] table for each, with tag and data"),
    "features": _no("give a [[feature]] table for each, with tag and data"),
    "dataset_config": _no("give the keys of the dataset in [data] of the settings", "data"),
    "in_json": _no("put a metadata.jsonl into the folder that data.path names", "data.path"),
    "instance_prompt": _no(
        "captions come from the files beside the images; data.tag is the trigger word", "data.tag"
    ),
    "trigger_word": _same("data.tag"),
    "trigger": _same("data.tag"),
    "class_tokens": _no("captions come from files; the word is data.class_word", "data.class_word"),
    "class_data_dir": _same("data.reg_data_dir"),
    "class_prompt": _same("data.reg_caption"),
    "with_prior_preservation": _no(
        "set data.reg_data_dir to a folder of class images", "data.reg_data_dir"
    ),
    "num_class_images": _no(
        "class images are not generated; data.reg_data_dir names a folder of them",
        "data.reg_data_dir",
    ),
    "prior_loss_weight": _same("data.prior_loss_weight"),
    "output_name": _same("output.name"),
    "output_dir": _same("output.name"),
    "output_model_destination": _same("output.name"),
    "caption_extension": _only((".txt", "txt"), "captions are read from .txt files"),
    "save_model_as": _only(("safetensors",), "LoRA files are always .safetensors"),
    "save_precision": _no("leave it out: LoRA files are saved in fp16; checkpoints keep fp32"),
    "output_dtype": _no("leave it out: LoRA files are saved in fp16; checkpoints keep fp32"),
    "config_file": _no(_SETTINGS_FILE),
    "config": _no(_SETTINGS_FILE),
    "image_column": _no(_COLUMNS, "data.path"),
    "caption_column": _no(_COLUMNS, "data.path"),
    "max_train_samples": _no("all images of the folder are used; data.filters chooses some"),
    "vae": _no("leave it out: the autoencoder is the model's own"),
    "push_to_hub": _no(_UPLOAD),
    "hub_model_id": _no(_UPLOAD),
    "hub_token": _no(_UPLOAD),
    # --- images and captions
    "repeats": _same("data.num_repeats"),
    "dataset_repeats": _same("data.num_repeats"),
    "alpha_mask": _no("masks are files, NAME.mask.png beside NAME.png", "train.loss.masked"),
    "caption_dropout_every_n_epochs": _no(_CAPTION_DROPOUT, "data.caption_dropout_rate"),
    "caption_tag_dropout_rate": _no(_CAPTION_DROPOUT, "data.caption_dropout_rate"),
    "caption_separator": _only((",",), "the parts of a caption are separated by commas"),
    "keep_tokens_separator": _no("set data.keep_tokens to a number", "data.keep_tokens"),
    "caption_prefix": _no("captions come from the files beside the images"),
    "max_data_loader_n_workers": _no(_WORKERS),
    "persistent_data_loader_workers": _no(_WORKERS),
    "dataloader_num_workers": _no(_WORKERS),
    "vae_batch_size": _no(_WORKERS),
    "random_flip": _same("data.flip_aug"),
    "color_aug": _no("set data.color_jitter to a strength such as 0.1", "data.color_jitter"),
    "random_crop": _same("data.crop", _choose("random", "center")),
    "center_crop": _same("data.crop", _choose("center", "random")),
    "enable_bucket": _same("data.buckets"),
    "aspect_ratio_bucketing": _same("data.buckets"),
    "min_bucket_reso": _no(_BUCKET_LIMITS, "data.max_aspect_ratio"),
    "max_bucket_reso": _no(_BUCKET_LIMITS, "data.max_aspect_ratio"),
    "bucket_no_upscale": _no(
        "small images are scaled up; set data.resolution lower", "data.resolution"
    ),
    "cache_latents": _same("data.cache"),
    "cache_latents_to_disk": _same("data.cache"),
    "cache_text_encoder_outputs": _same("data.cache"),
    "cache_text_encoder_outputs_to_disk": _same("data.cache"),
    "clip_skip": _no(
        "leave it out: training uses the text encoder layer that the model's own pipeline uses"
    ),
    # --- the adapter
    "network_dim": _same("lora.rank"),
    "network_rank": _same("lora.rank"),
    "lora_rank": _same("lora.rank"),
    "lora_r": _same("lora.rank"),
    "r": _same("lora.rank"),
    "network_alpha": _same("lora.alpha"),
    "lora_alpha": _same("lora.alpha"),
    "network_dropout": _same("lora.dropout"),
    "lora_dropout": _same("lora.dropout"),
    "target_modules": _same("lora.targets"),
    "lora_target_modules": _same("lora.targets"),
    "init_lora_weights": _same("lora.init", _init),
    "use_rslora": _same("lora.rslora"),
    "rank_pattern": _no("give [[lora.overrides]] with targets and a rank", "lora.overrides"),
    "alpha_pattern": _no("give [[lora.overrides]] with targets and an alpha", "lora.overrides"),
    "use_dora": _no("DoRA files can be used, but only LoRA is trained; leave it out"),
    "network_module": _only(("networks.lora", "lora"), "only LoRA is trained; leave it out"),
    "network_args": ForeignName("lora", translate_network_args),
    "network_weights": _no(_LORA_START),
    "dim_from_weights": _no(_LORA_START),
    "initial_lora": _no(_LORA_START),
    "lora_model_name": _no(_LORA_START),
    "base_weights": _no("fuse it into the model first: lorasmith lora fuse"),
    "lora_type": _only(("lora",), "only LoRA is trained; leave it out"),
    "lora_weight_dtype": _only(("float_32", "fp32"), "adapters are float32; leave it out"),
    "conv_dim": _no(_CONV, "lora.targets"),
    "conv_alpha": _no(_CONV, "lora.targets"),
    "rank_dropout": _no(_DROPOUT, "lora.dropout"),
    "module_dropout": _no(_DROPOUT, "lora.dropout"),
    "scale_weight_norms": _no("there is no limit on the norms of adapters; leave it out"),
    "train_unet": _no(_TARGETS, "lora.targets"),
    "stop_text_encoder_training": _no("text encoder layers are trained to the end; leave it out"),
    "network_train_unet_only": _no(_TARGETS, "lora.targets"),
    "network_train_text_encoder_only": _no(_TARGETS, "lora.targets"),
    "train_text_encoder": _no(_TARGETS, "lora.targets"),
    # --- steps and batches
    "max_train_steps": _same("train.steps"),
    "max_steps": _same("train.steps"),
    "per_device_train_batch_size": _same("train.batch_size"),
    "num_processes": _no(_PROCESSES),
    "multi_gpu": _no(_PROCESSES),
    "gpu_ids": _no("set train.device, such as cuda:1", "train.device"),
    "seed": _same("train.seed"),
    "train_batch_size": _same("train.batch_size"),
    "accumulate_grad_batches": _same("train.gradient_accumulation_steps"),
    "epochs": _no(EPOCHS, "train.steps"),
    "epoch": _no(EPOCHS, "train.steps"),
    "max_train_epochs": _no(EPOCHS, "train.steps"),
    "num_train_epochs": _no(EPOCHS, "train.steps"),
    # --- the optimizer
    "lr": _same("train.learning_rate"),
    "unet_lr": _same("train.learning_rate"),
    "text_encoder_learning_rate": _same("train.text_encoder_lr"),
    "optimizer_type": _same("train.optimizer"),
    "use_8bit_adam": _flag("train.optimizer", "adamw8bit"),
    "adam_weight_decay": _same("train.weight_decay"),
    "adam_beta1": _no(_ADAM, "train.optimizer_args"),
    "adam_beta2": _no(_ADAM, "train.optimizer_args"),
    "adam_epsilon": _no(_ADAM, "train.optimizer_args"),
    "learning_rate_scheduler": _same("train.lr_scheduler"),
    "lr_scheduler_type": _same("train.lr_scheduler"),
    "learning_rate_warmup_steps": _same("train.lr_warmup_steps"),
    "warmup_steps": _same("train.lr_warmup_steps"),
    "warmup_ratio": _same("train.lr_warmup_steps"),
    "lr_warmup_ratio": _same("train.lr_warmup_steps"),
    "lr_warmup": _same("train.lr_warmup_steps"),
    "learning_rate_min_factor": _same("train.lr_scheduler_min_lr_ratio"),
    "lr_scheduler_num_cycles": _no("there are no restarts; leave it out", "train.lr_scheduler"),
    "lr_scheduler_args": _no("schedules have no arguments; leave it out", "train.lr_scheduler"),
    "lr_scheduler_power": _no("there is no polynomial schedule", "train.lr_scheduler"),
    "clip_grad_norm": _same("train.max_grad_norm"),
    "loraplus_unet_lr_ratio": _same("train.loraplus_lr_ratio"),
    "scale_lr": _no("set train.learning_rate to the rate that is wanted", "train.learning_rate"),
    "use_ema": _no("set train.ema_decay, such as 0.999", "train.ema_decay"),
    "ema": _no("set train.ema_decay, such as 0.999", "train.ema_decay"),
    # --- the loss
    "snr_gamma": _same("train.loss.min_snr_gamma"),
    "offset_noise_weight": _same("train.loss.noise_offset"),
    "loss_type": _only(("l2", "mse"), _LOSS),
    "huber_c": _no(_LOSS),
    "huber_schedule": _no(_LOSS),
    "multires_noise_iterations": _no(_NOISE, "train.loss.noise_offset"),
    "multires_noise_discount": _no(_NOISE, "train.loss.noise_offset"),
    "ip_noise_gamma": _no(_NOISE, "train.loss.noise_offset"),
    "adaptive_noise_scale": _no(_NOISE, "train.loss.noise_offset"),
    "debiased_estimation_loss": _no(
        "noise levels are weighted by train.loss.weighting: min_snr or constant",
        "train.loss.weighting",
    ),
    "min_timestep": _no(_ALL_LEVELS),
    "max_timestep": _no(_ALL_LEVELS),
    "masked_loss": _same("train.loss.masked"),
    "masked_training": _same("train.loss.masked"),
    "diff_output_preservation_multiplier": _same("preserve.strength"),
    "diff_output_preservation": _flag("preserve.strength", 1.0),
    "v_parameterization": _no(_MODEL_KIND),
    "prediction_type": _no(_MODEL_KIND),
    "v2": _no(_MODEL_KIND),
    "model_type": _no(_MODEL_KIND),
    "sdxl": _no(_MODEL_KIND),
    # --- precision, memory and speed
    "train_dtype": _same("train.mixed_precision"),
    "fp16": _flag("train.mixed_precision", "fp16"),
    "bf16": _flag("train.mixed_precision", "bf16"),
    "full_fp16": _no('set train.mixed_precision = "fp16"', "train.mixed_precision"),
    "full_bf16": _no('set train.mixed_precision = "bf16"', "train.mixed_precision"),
    "fp8_base": _no("set train.fp8 = true, where batches are large", "train.fp8"),
    "torch_compile": _same("train.compile", _choose("on", "off")),
    "xformers": _no(_ATTENTION),
    "sdpa": _no(_ATTENTION),
    "mem_eff_attn": _no(_ATTENTION),
    "enable_xformers_memory_efficient_attention": _no(_ATTENTION),
    "allow_tf32": _no("leave it out: the package decides it by the device"),
    "lowram": _no('set train.vram_limit, such as "8GB"', "train.vram_limit"),
    "tf32": _no("leave it out: the package decides it by the device"),
    "lowvram": _no(_MEMORY, "train.vram_limit"),
    "highvram": _no(_MEMORY, "train.vram_limit"),
    "blocks_to_swap": _no(_MEMORY, "train.vram_limit"),
    "fused_backward_pass": _no(_MEMORY, "train.vram_limit"),
    # --- what is saved, measured and logged
    "checkpointing_steps": _same("train.checkpoint_every_n_steps"),
    "checkpoints_total_limit": _same("train.keep_checkpoints"),
    "save_every_n_epochs": _no(
        "epochs are not supported; set train.save_every_n_steps", "train.save_every_n_steps"
    ),
    "resume_from_checkpoint": _no("give the option --resume, or --resume step-120"),
    "save_state": _no("leave it out: checkpoints are always saved, and --resume continues"),
    "save_steps": _same("train.checkpoint_every_n_steps"),
    "save_last_n_steps": _no("all files of train.save_every_n_steps are kept; leave it out"),
    "save_last_n_epochs": _no("all files of train.save_every_n_steps are kept; leave it out"),
    "logging_steps": _same("train.log_every_n_steps"),
    "eval_steps": _same("validation.every_n_steps"),
    "sample_every_n_steps": _same("validation.every_n_steps"),
    "validate_every_n_steps": _same("validation.every_n_steps"),
    "validation_steps": _same("validation.every_n_steps"),
    "sample_every_n_epochs": _no(
        "epochs are not supported; set validation.every_n_steps", "validation.every_n_steps"
    ),
    "validation_epochs": _no(
        "epochs are not supported; set validation.every_n_steps", "validation.every_n_steps"
    ),
    "sample_prompts": _no(
        "give the prompts themselves as a list in validation.prompts", "validation.prompts"
    ),
    "validation_prompt": _same("validation.prompts", lambda prompt: [str(prompt)]),
    "validation_prompts": _same(
        "validation.prompts", lambda given: [given] if isinstance(given, str) else given
    ),
    "num_validation_images": _same("validation.num_images"),
    "sample_sampler": _no("previews have one sampler; generate has --sampler"),
    "sampler": _no("previews have one sampler; generate has --sampler"),
    "cfg_scale": _same("validation.guidance_scale"),
    "log_tracker_name": _same("track.wandb_project"),
    "tracker_project_name": _same("track.wandb_project"),
    "wandb_run_name": _no(_RUN_NAME, "output.name"),
    "report_to": ForeignName("track", _trackers),
    "log_with": ForeignName("track", _trackers),
    "logging_dir": _no("the log is in the run's folder, NAME/log.jsonl beside the LoRA"),
}
"""Foreign names in lower case with underscores."""

SWITCHES = (
    "random_crop",
    "center_crop",
    "torch_compile",
    "use_8bit_adam",
    "diff_output_preservation",
    "fp16",
    "bf16",
)
"""Those that are true or false, for a setting that is not."""


def normalize(name: str) -> str:
    """Return a name or option as the table has it."""
    return name.lstrip("-").replace("-", "_").casefold()
