"""Every optimizer: it learns, its state survives a file bit for bit, its mistakes are named."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.config.train_settings import TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.loops.optimizer_state import pack_optimizer_state, unpack_optimizer_state
from lorasmith.loops.optimizers import ParamGroup, create_optimizer, skips_on_found_inf
from lorasmith.pretraining.optimizer import set_learning_rate

NAMES = ("adamw", "adamw8bit", "prodigy", "lion", "adafactor")
PEAK = {"AdamW": 0.02, "AdamW8bit": 0.02, "Prodigy": 1.0, "Lion": 0.005, "AdaFactor": 0.02}
TARGET = torch.randn(80, 60, generator=torch.Generator().manual_seed(9))


def factors() -> tuple[nn.Parameter, nn.Parameter]:
    """A LoRA's start: large enough that 8-bit states are in use."""
    draws = torch.Generator().manual_seed(1)
    return nn.Parameter(torch.randn(70, 60, generator=draws) / 8), nn.Parameter(torch.zeros(80, 70))


def build(name: str, pair: tuple[nn.Parameter, ...], **more: object) -> torch.optim.Optimizer:
    settings = TrainerConfig(optimizer=name, **more)
    groups = [ParamGroup("unet", [one], 0.02) for one in pair]
    return create_optimizer(settings, groups)[0]


def move(optimizer: torch.optim.Optimizer, pair: tuple[nn.Parameter, ...], step: int) -> float:
    """Take a step under a schedule, on numbers that depend on the step alone."""
    set_learning_rate(optimizer, PEAK[type(optimizer).__name__] / (1 + step))
    down, up = pair
    x = torch.randn(16, 60, generator=torch.Generator().manual_seed(step))
    loss = (x @ (down.T @ up.T) - x @ TARGET.T).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    pair = factors()
    optimizer = build(name, pair)
    losses = [move(optimizer, pair, step % 2) for step in range(40)]
    assert losses[-1] < 0.98 * losses[0]
    assert all(bool(one.isfinite().all()) for one in pair)


@pytest.mark.parametrize("name", NAMES)
def test_three_resumes_through_a_file_change_no_bit(name: str, tmp_path: Path) -> None:
    straight = factors()
    optimizer = build(name, straight)
    for step in range(9):
        move(optimizer, straight, step)

    pair = factors()
    optimizer = build(name, pair)
    for step in range(9):
        if step in (1, 4, 8):
            tensors, plain = pack_optimizer_state(optimizer)
            save_tensors(tmp_path / "state.safetensors", tensors, {})
            text = json.dumps(plain)
            pair = tuple(nn.Parameter(one.detach().clone()) for one in pair)
            optimizer = build(name, pair)
            unpack_optimizer_state(
                optimizer, load_tensors(tmp_path / "state.safetensors"), json.loads(text)
            )
        move(optimizer, pair, step)
    assert all(torch.equal(one, two) for one, two in zip(straight, pair, strict=True))


def test_moments_of_eight_bits_stay_so_in_the_file() -> None:
    pair = factors()
    optimizer = build("adamw8bit", pair)
    move(optimizer, pair, 0)
    tensors, _ = pack_optimizer_state(optimizer)
    assert tensors["optimizer/0/state1"].dtype == torch.uint8
    addresses = [value.data_ptr() for value in tensors.values()]
    assert len(set(addresses)) == len(addresses)  # a file cannot hold shared memory


def test_only_adamw_skips_without_asking() -> None:
    assert [skips_on_found_inf(build(name, factors())) for name in NAMES] == [True, *[False] * 4]


def test_groups_have_rates_of_their_own() -> None:
    down, up = factors()
    groups = [
        ParamGroup("unet", [down], 0.1),
        ParamGroup("empty", [], 7.0),
        ParamGroup("t", [up], 2),
    ]
    for name in ("adamw", "lion"):
        optimizer, peaks = create_optimizer(TrainerConfig(optimizer=name), groups)
        assert peaks == [0.1, 2]
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(peaks)
        set_learning_rate(optimizer, 0.5)
        assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.5]
    with pytest.raises(ConfigError, match=r"prodigy finds one learning rate for all layers"):
        create_optimizer(TrainerConfig(optimizer="prodigy"), groups)


def test_settings_reach_the_optimizer() -> None:
    more = {"optimizer_args": {"betas": [0.5, 0.6]}, "weight_decay": 0.25}
    for name in ("adamw", "adamw8bit", "lion", "prodigy"):
        group = build(name, factors(), **more).param_groups[0]
        assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.25)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("adamw", {"beta": 1}, r"optimizer_args: no argument 'beta'; did you mean betas\?"),
        ("lion", {"nesterov": True}, r"no argument 'nesterov'; it takes betas, weight_decay"),
        ("adamw", {"betas": [2.0, 3.0]}, r"optimizer_args: adamw refuses them: Invalid beta"),
        ("lion", {"betas": [2.0, 3.0]}, r"optimizer_args: lion refuses them: "),
        ("prodigy", {"d0": "x", "betas": 3}, r"optimizer_args: prodigy refuses them: "),
    ],
)
def test_impossible_arguments_are_named(name: str, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, factors(), optimizer_args=given)


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("lion", "pytorch_optimizer")]
)
def test_a_missing_package_is_told_with_its_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(wanted: str) -> object:
        if wanted.startswith(package):
            raise ImportError(wanted)
        return import_module(wanted)

    monkeypatch.setattr("lorasmith.loops.optimizers.import_module", missing)
    with pytest.raises(ConfigError, match=rf"{name} needs the package {package}; install it with "
                       r"pip install 'lorasmith\[optimizers\]'"):  # fmt: skip
        build(name, factors())
