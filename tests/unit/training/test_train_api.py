from pathlib import Path
from typing import Any

import pytest

import lorasmith
from lorasmith.config.features import to_train_config
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError
from lorasmith.training.losses import diffusion_loss

TREE: dict[str, Any] = {
    "data": {"path": Path("pictures"), "tag": "ink"},
    "output": {"name": "ink"},
    "train": {"steps": 40},
}


def test_all_forms_of_settings_mean_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainConfig.model_validate(TREE)
    file = tmp_path / "run.toml"
    file.write_text(dump_toml(run), encoding="utf-8")
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "lorasmith.training.trainer.train", lambda *call: calls.append(call) or Path("ink")
    )
    for config in (run, TREE, file, str(file)):
        assert lorasmith.train(config, resume="latest") == Path("ink")
    assert lorasmith.train(run) == Path("ink")
    expected = [(run, resume, (), diffusion_loss, False) for resume in (*["latest"] * 4, None)]
    assert calls == expected


def test_settings_dictionary_is_not_changed() -> None:
    before = {name: dict(section) for name, section in TREE.items()}
    to_train_config(TREE)
    assert before == TREE


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TREE | {"train": {"stpes": 3}}, "unknown key 'stpes'.*did you mean steps"),
        ({"output": {"name": "x"}}, r"data\.path, data\.tag are required"),
        ("absent.toml", r"absent\.toml: no such settings file"),
        (7, "not int"),
        (None, "not NoneType"),
    ],
)
def test_wrong_settings_are_named(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lorasmith.train(config)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"callbacks": lorasmith.Callback()}, "callbacks: give a list, not Callback"),
        ({"callbacks": [lorasmith.Callback]}, r"give an object, Callback\(\), not the class"),
        ({"callbacks": [3]}, "callbacks: int is no subclass of lorasmith.Callback"),
        ({"loss_fn": "huber"}, "loss_fn: give a function, not str"),
    ],
)
def test_hooks_that_cannot_be_called_are_refused(hooks: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lorasmith.train(TREE, **hooks)
