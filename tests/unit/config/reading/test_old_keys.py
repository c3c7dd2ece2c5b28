from typing import Any

import pytest

from lorasmith.config.features import FeaturesConfig, load_train_config
from lorasmith.config.fields import list_fields
from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
from lorasmith.config.reading.load import dump_toml, load_saved_config
from lorasmith.config.reading.old_keys import CONFIG_VERSION, VERSION_1_KEYS, new_name, upgrade
from lorasmith.config.sweep import SweepConfig
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError, LorasmithWarning

KINDS = (TrainConfig, SweepConfig, ClipPretrainConfig, VaePretrainConfig, UnetPretrainConfig)
FEATURE_KEYS = {"feature.overrides", "feature.class_word"}


def test_every_new_key_exists() -> None:
    known = {key for kind in KINDS for key, _, _ in list_fields(kind)}
    known |= {f"feature.{key}" for key in known if key.startswith("data.")} | FEATURE_KEYS
    assert [key for key in VERSION_1_KEYS.values() if key not in known] == [
        key for key in VERSION_1_KEYS.values() if key.startswith("feature.data.")
        and key.removeprefix("feature.") not in known
    ]  # fmt: skip


@pytest.mark.parametrize("old", VERSION_1_KEYS)
def test_every_old_key_is_read_as_the_new_key(old: str) -> None:
    tree: dict[str, Any] = {}
    section_tree, (*sections, key) = tree, old.split(".")
    for section in sections:
        section_tree = section_tree.setdefault(section, {})
    section_tree[key] = 1
    if old.startswith("feature."):
        tree["feature"] = [tree["feature"]]
    upgraded, _ = upgrade(tree)
    value: Any = upgraded
    for part in VERSION_1_KEYS[old].split("."):
        value = value[0] if isinstance(value, list) else value
        value = value[part]
    assert value in (1, 75)


def test_values_are_converted() -> None:
    upgraded, _ = upgrade(
        {
            "data": {"max_chunks": 2, "masks": "given", "path": "p"},
            "train": {"precision": "no", "batch_size": 8, "accumulate": 2, "steps": 3},
            "vary": {"train": {"clip": [0.5, 1.0]}, "lora.rank": [1, 2]},
        }
    )
    assert upgraded == {
        "data": {"max_token_length": 150, "inpaint_masks": "file", "path": "p"},
        "train": {
            "mixed_precision": "fp32",
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
            "steps": 3,
        },
        "vary": {"train.max_grad_norm": [0.5, 1.0], "lora.rank": [1, 2]},
    }


def test_batch_size_becomes_that_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    old = {"loop": {"batch_size": 8, "accumulate": 2}, "stages": [{"batch_size": 16}]}
    upgraded, _ = upgrade(old)
    assert upgraded["train"]["batch_size"] == 2
    assert upgraded["stages"] == [{"batch_size": 4}]
    assert old["stages"] == [{"batch_size": 16}]
    with pytest.raises(ConfigError, match=r"batch_size 9 .* does not divide into 4 batches"):
        upgrade({"train": {"batch_size": 9, "accumulate": 2}})


def test_current_settings_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    tree = {"train": {"batch_size": 8, "gradient_accumulation_steps": 2}, "vary": {"a.b": [1]}}
    assert upgrade(tree) == (tree, [])
    assert upgrade({**tree, "config_version": CONFIG_VERSION}) == (tree, [])


def test_newer_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="use a newer lorasmith"):
        upgrade({"config_version": CONFIG_VERSION + 1})


def test_old_file_is_read_with_a_warning_and_old_run_without(tmp_path, recwarn) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[data]\npath = "p"\ntag = "ink"\nflip = true\n[output]\nname = "n"\n[preview]\nevery = 3\n'
    )
    with pytest.warns(LorasmithWarning, match=r"data\.flip is data\.flip_aug now \(and 1 more\)"):
        config = load_train_config(path)
    assert isinstance(config, TrainConfig)
    assert config.data.flip_aug
    assert config.validation.every_n_steps == 3
    assert load_saved_config(TrainConfig, path) == config
    path.write_text(dump_toml(config))
    assert load_saved_config(TrainConfig, path) == config
    assert f"config_version = {CONFIG_VERSION}" in path.read_text()


def test_features_are_read(tmp_path) -> None:
    path = tmp_path / "features.toml"
    path.write_text(
        '[output]\nname = "n"\n[[feature]]\ntag = "ink"\nclass = "person"\n'
        'data = { path = "p", repeats = 2 }\nparts = [{ targets = "mid", rank = 2 }]\n'
    )
    feature = load_saved_config(FeaturesConfig, path).feature[0]
    assert (feature.class_word, feature.data.num_repeats) == ("person", 2)
    assert feature.overrides is not None
    assert feature.overrides[0].rank == 2


def test_old_key_gives_its_new_name() -> None:
    assert new_name("train.clip") == "train.max_grad_norm"
    assert new_name("train.steps") is None
