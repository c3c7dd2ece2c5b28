from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import Field, model_validator

import lorasmith
from lorasmith.config.base import BaseConfig
from lorasmith.config.fields import list_fields
from lorasmith.config.reading.load import dump_toml, load_config, parse_override
from lorasmith.config.reading.read_toml import read_toml
from lorasmith.core.errors import ConfigError


class Train(BaseConfig):
    """How to train."""

    steps: int = Field(default=100, gt=0)
    """Optimizer steps."""
    learning_rate: float = 1e-4
    """Step size."""


class Feature(BaseConfig):
    """One thing to learn."""

    tag: str
    """Its word."""


class Pair(BaseConfig):
    """Two numbers in order."""

    low: int = 0
    """The lower one."""
    high: int = 9
    """The higher one."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Run(BaseConfig):
    """A whole run."""

    name: str = "run"
    """What it is called."""
    train: Train = Train()
    """The loop."""
    features: tuple[Feature, ...] = ()
    """What to learn."""
    notes: str | None = None
    """Anything."""
    pair: Pair = Pair()
    """Settings that depend on each other."""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3", r"unknown key 'step' in section \[train\]; did you mean steps\?"),
        ("nmae = 'x'", r"unknown key 'nmae' in the top level; did you mean name\?"),
        ("[trian]\nsteps = 3", r"unknown key 'trian' in the top level; did you mean train\?"),
        ("[[features]]\ntag = 3", r"features.0.tag: "),
        ("[[features]]\ntga = 'x'", r"'tga' in section \[features.0\]; did you mean tag.*1 more"),
        (
            "[[features]]\ntag = 'a'\ntga = 'x'",
            r"'tga' in section \[features.0\]; did you mean tag",
        ),
        ("[train]\nsteps = 0", r"train.steps: input should be greater than 0 \(got 0\)"),
        ("[train]\nsteps = 'many'", r"train.steps: .*integer.*'many'"),
        ("[train", "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "run.toml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Run, path)
    assert "run.toml" in str(caught.value)


def test_settings_that_do_not_go_together_are_named_without_all_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^settings: pair: low is above high$"):
        load_config(Run, None, ["pair.low=10"])
    path = write(tmp_path / "pair.toml", "low = 10")
    with pytest.raises(ConfigError, match=r"pair\.toml: low is above high$"):
        load_config(Pair, path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such settings file"):
        read_toml(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = 'caf\xe9'")
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8 text \(line 1\)"):
        read_toml(tmp_path / "latin.toml")


def test_overrides_win_over_the_file_and_the_file_over_the_base(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "name = 'file'\n[train]\nsteps = 5")
    base = {"name": "base", "notes": "kept", "train": {"learning_rate": 0.5}}
    run = load_config(Run, path, ["train.steps=7"], base)
    assert (run.name, run.notes) == ("file", "kept")
    assert (run.train.steps, run.train.learning_rate) == (7, 0.5)
    assert base == {"name": "base", "notes": "kept", "train": {"learning_rate": 0.5}}
    assert load_config(Run, None, ["train.learning_rate=1e-3"]).train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a=true", {"a": True}),
        ("a = [1, 2]", {"a": [1, 2]}),
        ("run.out=a/b", {"run": {"out": "a/b"}}),
        ('a="1"', {"a": "1"}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_override_values_are_toml_or_text(text: str, tree: dict) -> None:
    assert parse_override(text) == tree


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1"])
def test_malformed_override_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
        parse_override(text)


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    run = load_config(Run, None, ["train.steps=9", "features=[{tag='a'}]"])
    assert load_config(Run, write(tmp_path / "r.toml", dump_toml(run))) == run


def test_every_field_is_described() -> None:
    rows = list_fields(Run)
    assert ("train.steps", 100, "Optimizer steps.") in rows
    assert all(text for _, _, text in rows)


TREE = {"data": {"path": "a", "tag": "b"}, "output": {"name": "x"}}


@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"rank": 0}},
        {"lora": {"rnk": 3}},
        {"data": {"path": "a"}},
        {"train": {"early_stopping_patience": 3}, "validation": {"every_n_steps": 0}},
    ],
)
def test_constructor_and_train_raise_the_same_line(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as built:
        lorasmith.TrainConfig(**{**TREE, **change})
    with pytest.raises(ConfigError) as trained:
        lorasmith.train({**TREE, **change})
    assert str(built.value) == str(trained.value)
    assert "\n" not in str(built.value)


def test_part_of_the_settings_names_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^settings: rank: input should be greater than 0"):
        lorasmith.LoraConfig(rank=0)
    with pytest.raises(ConfigError, match=r"unknown key 'min_snr'.*did you mean min_snr_gamma"):
        lorasmith.LossConfig(min_snr=3)
