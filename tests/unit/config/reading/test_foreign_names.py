"""Every name in the table of foreign names takes effect or says the exact answer."""

from pathlib import Path
from typing import Any

import pytest

import lorasmith
from lorasmith.cli import run
from lorasmith.config.features import FeatureConfig, FeaturesConfig
from lorasmith.config.fields import list_fields
from lorasmith.config.reading.foreign_names import FOREIGN_NAMES
from lorasmith.config.reading.load import load_config, validate_config
from lorasmith.config.reading.translate_foreign import FEATURE_KEYS
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

NEEDED = {
    "data": {"path": "pictures", "tag": "ink", "reg_data_dir": "class"},
    "output": {"name": "ink"},
}
DEFAULTS = {key: default for key, default, _ in list_fields(TrainConfig)}
VALUES: dict[str, Any] = {
    "caption_extension": ".txt", "save_model_as": "safetensors", "network_module": "networks.lora",
    "report_to": "wandb", "log_with": "all", "optimizer_type": "AdamW8bit",
    "lr_scheduler_type": "constant_with_warmup", "learning_rate_scheduler": "LINEAR",
    "train_dtype": "BFLOAT_16", "init_lora_weights": "pissa", "target_modules": ["attention"],
    "lora_target_modules": ["attention"], "warmup_ratio": 0.25, "learning_rate_min_factor": 0.5,
    "validation_prompt": "a dog", "center_crop": False, "enable_bucket": False,
    "aspect_ratio_bucketing": False, "cache_latents": False, "cache_latents_to_disk": False,
    "cache_text_encoder_outputs": False, "cache_text_encoder_outputs_to_disk": False,
    "masked_loss": False, "masked_training": False, "network_dropout": 0.25, "lora_dropout": 0.25,
    "lora_r": 3, "r": 3, "offset_noise_weight": 0.5, "caption_separator": ",", "lora_type": "LORA",
    "lora_weight_dtype": "FLOAT_32", "loss_type": "l2", "lr_warmup_ratio": 0.25,
    "network_args": ["dropout=0.25"],
}  # fmt: skip
"""Values of names whose settings take no number."""
TRANSLATED = [name for name, entry in FOREIGN_NAMES.items() if entry.translate is not None]
EXPLAINED = [name for name, entry in FOREIGN_NAMES.items() if entry.translate is None]


def value_of(name: str) -> Any:
    if name in VALUES:
        return VALUES[name]
    default = DEFAULTS.get(FOREIGN_NAMES[name].key)
    if isinstance(default, bool) or name in ("use_8bit_adam", "diff_output_preservation"):
        return True
    if name in ("random_crop", "torch_compile", "fp16", "bf16"):
        return True
    return 3 if isinstance(default, int | float) or name in NUMBERS else "some/where"


NUMBERS = ("network_alpha", "lora_alpha", "lr", "unet_lr", "text_encoder_learning_rate")


@pytest.mark.parametrize("name", TRANSLATED)
def test_name_with_the_same_meaning_takes_effect(name: str, tmp_path: Path) -> None:
    plain = load_config(TrainConfig, None, base=NEEDED)
    path = tmp_path / "kohya.toml"
    value = value_of(name)
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    path.write_text(f"{name} = {shown}\n", encoding="utf-8")
    flat = load_config(TrainConfig, path, base=without(name))
    path.write_text(f"[some_arguments]\n{name} = {shown}\n", encoding="utf-8")
    assert load_config(TrainConfig, path, base=without(name)) == flat
    assert load_config(TrainConfig, None, [f"{name}={shown}"], without(name)) == flat
    if FOREIGN_NAMES[name].key:
        assert flat != plain


def without(name: str) -> dict[str, Any]:
    """The settings that are needed, but for the one that a name stands for."""
    section, _, key = FOREIGN_NAMES[name].key.partition(".")
    return {
        part: {k: v for k, v in keys.items() if (part, k) != (section, key)}
        for part, keys in NEEDED.items()
    }


@pytest.mark.parametrize("name", EXPLAINED)
def test_name_with_another_meaning_is_explained(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, None, [f"{name}=1"], NEEDED)
    assert str(caught.value) == f"{name}: {FOREIGN_NAMES[name].answer}"


@pytest.mark.parametrize("name", EXPLAINED)
def test_option_with_another_meaning_is_explained(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--tag", "ink", f"--{name}", "1", "--print-config"]) == 1
    assert capsys.readouterr().err == f"error: --{name}: {FOREIGN_NAMES[name].answer}\n"


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> TrainConfig:
    import tomllib

    capsys.readouterr()
    assert run(["train", *options, "--print-config"]) == 0, capsys.readouterr().err
    tree = tomllib.loads(capsys.readouterr().out)
    del tree["config_version"]
    return validate_config(TrainConfig, tree)


@pytest.mark.parametrize("name", TRANSLATED)
def test_option_with_the_same_meaning_takes_effect(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = value_of(name)
    if isinstance(value, list):
        value = value[0]
    options = (f"--{name}",) if value is True else (f"--{name}", str(value).lower())
    needed = ("--set", "data.reg_data_dir=class") if name == "class_prompt" else ()
    changed = printed(capsys, *needed, *options)
    if FOREIGN_NAMES[name].key:
        assert changed != printed(capsys, *needed)


def test_full_kohya_command_line_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(
        capsys,
        "--pretrained_model_name_or_path=models/base.safetensors", "--train_data_dir=images",
        "--output_dir=out", "--output_name=ink", "--network_module=networks.lora",
        "--network_dim=8", "--network_alpha=4", "--train_batch_size=2", "--max_train_steps=900",
        "--learning_rate=1e-4", "--unet_lr=2e-4", "--text_encoder_lr=5e-5",
        "--lr_scheduler=cosine", "--lr_warmup_steps=50", "--optimizer_type=AdamW8bit",
        "--optimizer_args", "weight_decay=0.1", "betas=0.9,0.99", "--mixed_precision=bf16",
        "--gradient_accumulation_steps=4", "--gradient_checkpointing", "--resolution=768,768",
        "--min_snr_gamma=5", "--seed=42", "--caption_extension=.txt", "--cache_latents",
        "--shuffle_caption", "--keep_tokens=2", "--max_token_length=150", "--save_model_as",
        "safetensors", "--tag", "ink",
    )  # fmt: skip
    assert str(config.model.path) == "models/base.safetensors"
    assert (str(config.data.path), config.output.name) == ("images", "out/ink")
    assert (config.lora.rank, config.lora.alpha) == (8, 4.0)
    train = config.train
    assert (train.steps, train.batch_size, train.gradient_accumulation_steps) == (900, 2, 4)
    assert (train.learning_rate, train.text_encoder_lr) == (2e-4, 5e-5)
    assert (train.optimizer, train.lr_warmup_steps) == ("adamw8bit", 50)
    assert train.optimizer_args == {"weight_decay": 0.1, "betas": [0.9, 0.99]}
    assert (train.mixed_precision, train.seed) == ("bf16", 42)
    assert train.gradient_checkpointing
    assert (config.data.resolution, config.data.max_token_length) == (768, 150)
    assert config.data.shuffle_caption
    assert config.data.keep_tokens == 2


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.mixed_precision=no", "train.mixed_precision", "fp32"),
        ("train.optimizer=ADAMW_8BIT", "train.optimizer", "adamw8bit"),
        ("train.lr_scheduler=Cosine", "train.lr_scheduler", "cosine"),
        ("data.resolution=512", "data.resolution", 512),
        ("data.resolution=[512, 512]", "data.resolution", 512),
    ],
)
def test_foreign_values_are_accepted(override: str, key: str, expected: object) -> None:
    config = load_config(TrainConfig, None, [override], NEEDED)
    section, _, name = key.partition(".")
    assert getattr(getattr(config, section), name) == expected


def test_seed_of_minus_1_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {load_config(TrainConfig, None, ["train.seed=-1"], NEEDED).train.seed for _ in "abc"}
    assert len(seeds) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several processes need the same seed"):
        load_config(TrainConfig, None, ["train.seed=-1"], NEEDED)


def test_epochs_are_answered_with_the_steps_that_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(b"")
        (tmp_path / f"{index}.txt").write_text("ink", encoding="utf-8")
    options = ["--data", str(tmp_path), "--tag", "ink", "--train_batch_size", "2"]
    assert run(["train", *options, "--epochs", "10"]) == 1
    assert capsys.readouterr().err.endswith(
        "here 6 / 2 = 3 in an epoch, some more if the images have several sizes: --steps 30\n"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network_dim=3", "lora.rank=4"], None),
        (["lora.network_dim=3"], None),
        (["data.rank=3"], r"unknown key 'rank' in section \[data\]; did you mean lora.rank"),
        (["train.clip=1"], "train.clip is train.max_grad_norm now"),
        (["train.accumulate=2"], "gradient_accumulation_steps now, and it multiplies"),
        (["report_to=mlflow"], "report_to: there is no tracker 'mlflow'"),
        (["caption_extension=.caption"], "caption_extension: captions are read from .txt files"),
    ],
)
def test_foreign_names_in_sections_are_understood(
    overrides: list[str], message: str | None
) -> None:
    if message is None:
        assert load_config(TrainConfig, None, overrides, NEEDED).lora.rank in (3, 4)
        return
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, overrides, NEEDED)


def test_two_names_of_the_same_setting_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("network_dim = 3\n[lora]\nrank = 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"network_dim and lora\.rank are the same setting"):
        load_config(TrainConfig, path, base=NEEDED)
    path.write_text("network_dim = 3\nlora_rank = 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"network_dim and lora_rank are both lora\.rank"):
        load_config(TrainConfig, path, base=NEEDED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network_dim", "--network_dim: it needs a value"),
        ("--network_dim 8 --rank 4", "--rank and --network_dim are the same setting; give one of"),
        ("--netwrok_dim 8", "--netwrok_dim: there is no such option or setting; did you mean "
         "--network_dim?"),
        ("--foo 8", "--foo: there is no such option or setting"),
        ("--resume out/state", "--resume out/state: --out names the run; give --resume alone"),
        ("--network_args conv_dim=8 conv_alpha=4", "--network_args: convolutions are trained with "
         "--set 'lora.overrides=[{targets = \"conv\", rank = 8, alpha = 4}]'"),
        ("--network_args algo=lokr", "--network_args: algo=lokr: only LoRA is trained"),
        ("--network_args module_dropot=0.1", "--network_args: module_dropot: there is no such "
         "argument; did you mean module_dropout"),
        ("--text_encoder_lr 1e-4 5e-5", "settings: train.text_encoder_lr: one rate is for all text "
         "encoders; the second gets another with [[lora.overrides]], targets = "
         "\"text_encoder_2.*\", learning_rate = 5e-05"),
        ("--resolution 512 768", "settings: data.resolution: give one number, 627 for as many "),
        ("--learning_rate 1e-4 2e-4", "settings: train.learning_rate: input should be a valid"),
        ("--loss_type huber", "--loss_type: the loss is the squared error"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_taken_are_answered_in_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *options.split(), "--print-config"]) == 1
    answer = capsys.readouterr().err
    assert answer.startswith(f"error: {message}")
    assert answer.count("\n") == 1


def test_options_take_several_values_where_they_are_lists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = printed(
        capsys, "--target_modules", "to_k", "to_q", "--validation_prompts", "a dog", "a cat"
    )
    assert config.lora.targets == ("to_k", "to_q")
    assert config.validation.prompts == ("a dog", "a cat")
    assert printed(capsys, "--validation_prompts", "a dog").validation.prompts == ("a dog",)


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        ("--resolution 512 512", "data.resolution", 512),
        ("--resolution 512,512", "data.resolution", 512),
        ("--resolution=512,512", "data.resolution", 512),
        ("--text_encoder_lr 5e-5 5e-5", "train.text_encoder_lr", 5e-5),
        ("--network_args dropout=0.1 rank=3", "lora.rank", 3),
        ("--network_args algo=locon loraplus_lr_ratio=4", "train.loraplus_lr_ratio", 4.0),
    ],
)
def test_several_values_of_the_same_meaning_are_taken(
    options: str, key: str, expected: object, capsys: pytest.CaptureFixture[str]
) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(printed(capsys, *options.split()), section), name) == expected


def test_answer_about_convolutions_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--network_args", "conv_dim=8", "--print-config"]) == 1
    override = capsys.readouterr().err.partition("--set '")[2].partition("'")[0]
    overrides = printed(capsys, "--set", override).lora.overrides
    assert [(part.targets, part.rank, part.alpha) for part in overrides] == [("conv", 8, 1.0)]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("--epochs 10", "22 / 8 = 3 in an epoch, some more if the images have several sizes: "
         "--steps 30"),
        ("--max_train_epochs 2 --train_batch_size 4 --repeats 2", "44 / 4 = 11 in an epoch, some "
         "more if the images have several sizes: --steps 22"),
        ("--epochs 1 --set train.gradient_accumulation_steps=11 --set train.batch_size=1",
         "22 / 11 = 2 in an epoch, some more if the images have several sizes: --steps 2"),
    ],
)  # fmt: skip
def test_epochs_are_answered_with_the_steps_of_the_images(
    options: str, steps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(Path(lorasmith.__file__).parent / "demo_data")  # 24 images, 2 for validation
    assert run(["train", "--data", folder, "--tag", "inkmono", *options.split()]) == 1
    assert capsys.readouterr().err.endswith(f"batch size, here {steps}\n")


FEATURES = """
[output]
name = "two"
[[feature]]
tag = "inkmono"
data = "pictures"
network_dim = 3
[[feature]]
trigger_word = "curlyqx"
train_data_dir = "others"
repeats = 2
lr = 1e-3
data = {random_flip = true}
"""


def test_foreign_names_of_a_feature_are_read(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(FEATURES, encoding="utf-8")
    config = load_config(FeaturesConfig, path)
    first, second = config.feature
    assert (first.rank, first.data.path) == (3, Path("pictures"))
    assert (second.tag, second.data.path) == ("curlyqx", Path("others"))
    assert (second.data.num_repeats, second.data.flip_aug) == (2, True)
    assert second.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train_batch_size = 2",
            r"train_batch_size: train\.batch_size is the same for all",
        ),
        ("rank = 4", "feature: network_dim and rank are the same setting"),
        ("use_dora = true", "use_dora: DoRA files can be used, but only LoRA is trained"),
        ("rnk = 4", r"unknown key 'rnk' in section \[feature\.0\]; did you mean rank"),
    ],
)
def test_other_foreign_names_of_a_feature_are_answered(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(FEATURES.replace("network_dim = 3", f"network_dim = 3\n{line}"), "utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(FeaturesConfig, path)


def test_table_of_feature_keys_is_complete() -> None:
    assert set(FEATURE_KEYS) | {"data"} == set(FeatureConfig.model_fields)
    assert set(FEATURE_KEYS.values()) <= set(DEFAULTS)


def test_settings_of_features_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(FEATURES, encoding="utf-8")
    assert run(["train", str(path), "--preset", "style", "--print-config"]) == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    printed_config = load_config(FeaturesConfig, tmp_path / "printed.toml")
    assert [feature.tag for feature in printed_config.feature] == ["inkmono", "curlyqx"]
    assert printed_config.train.lr_warmup_steps == 0.08
