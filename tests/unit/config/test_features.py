"""Runs of several features: what each is trained with, and which cannot stand side by side."""

from pathlib import Path

import pytest

from lorasmith.config.features import FeaturesConfig, load_train_config, require_single_feature
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

TWO = """
[[feature]]
tag = "curlyqx"
class_word = "person"
data = "pictures/curly"
rank = 4
targets = "cross-attention"
gate = "token"

[[feature]]
tag = "a cook"
data = { path = "pictures/cook", flip_aug = false, num_repeats = 3 }
learning_rate = 5e-4

[output]
name = "both"

[data]
flip_aug = true
resolution = 64

[lora]
rank = 8
alpha = 2.0

[train]
mode = "joint"
steps = 7
"""


def settings(tmp_path: Path, text: str = TWO) -> FeaturesConfig:
    file = tmp_path / "run.toml"
    file.write_text(text)
    run = load_train_config(file)
    assert isinstance(run, FeaturesConfig)
    return run


def error(tmp_path: Path, old: str, new: str) -> str:
    assert old in TWO
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, TWO.replace(old, new, 1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_feature_settings_override_the_common_settings(tmp_path: Path) -> None:
    curly, cook = settings(tmp_path).train_configs()
    assert (curly.data.tag, curly.data.class_word) == ("curlyqx", "person")
    assert (curly.data.path, cook.data.path) == (Path("pictures/curly"), Path("pictures/cook"))
    assert (curly.data.flip_aug, cook.data.flip_aug) == (True, False)
    assert (curly.data.resolution, cook.data.resolution, cook.data.num_repeats) == (64, 64, 3)
    assert (curly.lora.rank, curly.lora.effective_alpha, curly.lora.gate) == (4, 4.0, "token")
    assert (cook.lora.rank, cook.lora.effective_alpha, cook.lora.gate) == (8, 2.0, "prompt")
    assert (curly.lora.targets, cook.lora.targets) == ("cross-attention", "all-linear")
    assert (curly.train.learning_rate, cook.train.learning_rate) == (None, 5e-4)
    assert curly.train.steps == cook.train.steps == 7
    assert [run.output.name for run in (curly, cook)] == ["both-curlyqx", "both-a-cook"]


def test_saved_settings_are_the_same_again(tmp_path: Path) -> None:
    run = settings(tmp_path)
    assert settings(tmp_path, dump_toml(run)).train_configs() == run.train_configs()


def test_file_without_features_is_a_single_run(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[data]\npath = "p"\ntag = "t"\n[output]\nname = "n"\n')
    assert isinstance(require_single_feature(load_train_config(file)), TrainConfig)
    file.write_text(TWO)
    with pytest.raises(ConfigError, match="train_features"):
        require_single_feature(load_train_config(file))


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("CurlyQX", "the tag 'CurlyQX' is there twice"),
        ("a curlyqx look", "'curlyqx' stands inside the tag 'a curlyqx look'"),
        ("curlyqx!", "'curlyqx' stands inside the tag 'curlyqx!'"),
        ("x, y", "a tag has no comma"),
    ],
)
def test_tags_that_cannot_stand_side_by_side_are_refused(
    tmp_path: Path, tag: str, message: str
) -> None:
    assert message in error(tmp_path, "a cook", tag)


def test_tags_of_one_file_name_are_refused(tmp_path: Path) -> None:
    assert "are the same in file names" in error(tmp_path, '"curlyqx"', '"a-cook"')


def test_tags_that_share_only_letters_are_accepted(tmp_path: Path) -> None:
    assert len(settings(tmp_path, TWO.replace("a cook", "curlyqxy")).feature) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 4", "rnk = 4", "unknown key 'rnk' in section [feature.0]; did you mean rank?"),
        ('class_word = "person"', 'clas_word = "x"', "did you mean class_word?"),
        ("num_repeats = 3", "num_repaets = 3", "did you mean num_repeats?"),
        ('mode = "joint"', 'mode = "mixed"', "train.mode"),
        ("flip_aug = true", 'flip_aug = "sometimes"', "data.flip_aug"),
        (
            "[train]",
            "[preserve]\nearlier_features_strength = 1.0\n[train]",
            "preserve.earlier_features_strength goes with",
        ),
        ("[train]", "[preserve]\nstrength = 1.0\n[train]", "nothing to do under lora.gate = token"),
        ('data = "pictures/curly"\n', "", "feature.0.data is required"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in error(tmp_path, old, new)
