"""Settings of a training run: files, defaults and what is refused."""

from pathlib import Path

import pytest

from lorasmith.config.fields import list_fields
from lorasmith.config.reading.load import dump_toml, load_config
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

NEEDED = ["data.path=x", "data.tag=ink", "output.name=n"]


def test_settings_survive_a_toml_round_trip(tmp_path: Path) -> None:
    config = load_config(
        TrainConfig, None, [*NEEDED, "lora.alpha=3.5", "train.mixed_precision=bf16"]
    )
    path = tmp_path / "run.toml"
    path.write_text(dump_toml(config))
    assert load_config(TrainConfig, path) == config


def test_every_field_is_documented() -> None:
    assert all(text for _, _, text in list_fields(TrainConfig))


def test_alpha_is_the_rank_unless_given() -> None:
    assert load_config(TrainConfig, None, [*NEEDED, "lora.rank=4"]).lora.effective_alpha == 4.0
    config = load_config(TrainConfig, None, [*NEEDED, "lora.rank=4", "lora.alpha=1"])
    assert config.lora.effective_alpha == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown key 'step' in section \[train\]; did you mean steps\?"),
        ("trian.steps=3", r"unknown key 'trian' in the top level; did you mean train[,?]"),
        ("train.steps=0", "train.steps: .*greater than 0"),
        ("train.learning_rate=-1", "train.learning_rate: .*greater than 0"),
        ("train.mixed_precision=fp8", "train.mixed_precision: "),
        ("data.tag=' , '", "data.tag: the tag has no letter or digit"),
        ("data.tag='a, b'", "data.tag: a tag has no comma"),
        ('data.tag="a\\u0007b"', "data.tag: the tag has characters that are not text"),
        ("data.tag='a <lora:b>'", "data.tag: a tag has no <lora:"),
        ("output.name='a/'", "output.name: give the LoRA a name"),
        ("output.name='..'", "output.name: give the LoRA a name"),
        ("lora.rank=1.5", "lora.rank: "),
    ],
)
def test_impossible_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, [*NEEDED, override])


def test_value_in_a_message_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr_scheduler: ") as caught:
        load_config(TrainConfig, None, [*NEEDED, "train.lr_scheduler=zigzag"])
    assert str(caught.value).count("'zigzag'") == 1
    assert "got" not in str(caught.value)


def test_missing_section_is_named_by_its_required_settings() -> None:
    with pytest.raises(ConfigError, match=r"data\.path, data\.tag are required \(and 1 more\)"):
        load_config(TrainConfig)
