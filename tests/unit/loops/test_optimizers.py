"""Every optimizer lowers the loss, its state survives a file bit for bit, and errors are named."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from lorasmith.config.optimization import TrainerConfig
from lorasmith.core.errors import ConfigError
from lorasmith.core.safetensors_io import load_tensors, save_tensors
from lorasmith.loops.optimization.optimizer_state import (
    pack_optimizer_state,
    unpack_optimizer_state,
)
from lorasmith.loops.optimization.optimizers import (
    OptimizerSpec,
    ParamGroup,
    create_optimizer,
    skips_on_found_inf,
)
from lorasmith.pretraining.optimizer import set_learning_rate
from lorasmith.registries import OPTIMIZERS

NAMES = ("adamw", "adamw8bit", "prodigy", "lion", "adafactor")
PEAK_LR = {"AdamW": 0.02, "AdamW8bit": 0.02, "Prodigy": 1.0, "Lion": 0.005, "AdaFactor": 0.02}
TARGET = torch.randn(80, 60, generator=torch.Generator().manual_seed(9))


def lora_factors() -> tuple[nn.Parameter, nn.Parameter]:
    """A LoRA's start: large enough that 8-bit states are in use."""
    rng = torch.Generator().manual_seed(1)
    return nn.Parameter(torch.randn(70, 60, generator=rng) / 8), nn.Parameter(torch.zeros(80, 70))


def build(
    name: str, factors: tuple[nn.Parameter, ...], weight_decay: float = 0.01, **arguments: object
) -> torch.optim.Optimizer:
    groups = [ParamGroup("unet", [factor], 0.02) for factor in factors]
    return create_optimizer(name, groups, weight_decay, arguments)[0]


def take_step(
    optimizer: torch.optim.Optimizer, factors: tuple[nn.Parameter, ...], step: int
) -> float:
    """Take a step under a schedule, on numbers that depend on the step alone."""
    set_learning_rate(optimizer, PEAK_LR[type(optimizer).__name__] / (1 + step))
    down, up = factors
    x = torch.randn(16, 60, generator=torch.Generator().manual_seed(step))
    loss = (x @ (down.T @ up.T) - x @ TARGET.T).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    factors = lora_factors()
    optimizer = build(name, factors)
    losses = [take_step(optimizer, factors, step % 2) for step in range(40)]
    assert losses[-1] < 0.98 * losses[0]
    assert all(bool(factor.isfinite().all()) for factor in factors)


@pytest.mark.parametrize("name", NAMES)
def test_three_resumes_through_a_file_change_no_bit(name: str, tmp_path: Path) -> None:
    uninterrupted = lora_factors()
    optimizer = build(name, uninterrupted)
    for step in range(9):
        take_step(optimizer, uninterrupted, step)

    resumed = lora_factors()
    optimizer = build(name, resumed)
    for step in range(9):
        if step in (1, 4, 8):
            tensors, plain = pack_optimizer_state(optimizer)
            save_tensors(tmp_path / "state.safetensors", tensors, {})
            text = json.dumps(plain)
            resumed = tuple(nn.Parameter(factor.detach().clone()) for factor in resumed)
            optimizer = build(name, resumed)
            unpack_optimizer_state(
                optimizer, load_tensors(tmp_path / "state.safetensors"), json.loads(text)
            )
        take_step(optimizer, resumed, step)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))


def test_8bit_moments_stay_8bit_in_the_file() -> None:
    factors = lora_factors()
    optimizer = build("adamw8bit", factors)
    take_step(optimizer, factors, 0)
    tensors, _ = pack_optimizer_state(optimizer)
    assert tensors["optimizer/0/state1"].dtype == torch.uint8
    addresses = [value.data_ptr() for value in tensors.values()]
    assert len(set(addresses)) == len(addresses)  # a file cannot hold shared memory


def test_only_adamw_skips_on_found_inf() -> None:
    skips = [skips_on_found_inf(build(name, lora_factors())) for name in NAMES]
    assert skips == [True, *[False] * 4]


def test_groups_keep_their_learning_rates() -> None:
    down, up = lora_factors()
    groups = [
        ParamGroup("unet", [down], 0.1),
        ParamGroup("empty", [], 7.0),
        ParamGroup("text", [up], 2),
    ]
    for name in ("adamw", "lion"):
        optimizer, base_lrs = create_optimizer(name, groups)
        assert base_lrs == [0.1, 2]
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(base_lrs)
        set_learning_rate(optimizer, 0.5)
        assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.5]
    with pytest.raises(ConfigError, match=r"prodigy finds one learning rate for all layers"):
        create_optimizer("prodigy", groups)


def test_settings_reach_the_optimizer() -> None:
    for name in ("adamw", "adamw8bit", "lion", "prodigy"):
        optimizer = build(name, lora_factors(), weight_decay=0.25, betas=[0.5, 0.6])
        group = optimizer.param_groups[0]
        assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.25)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamw", {"beta": 1}, r"optimizer_args: no argument 'beta'; did you mean betas\?"),
        ("lion", {"nesterov": True}, r"no argument 'nesterov'; it takes betas, weight_decay"),
        ("adamw", {"betas": [2.0, 3.0]}, r"optimizer_args: adamw refuses them: Invalid beta"),
        ("lion", {"betas": [2.0, 3.0]}, r"optimizer_args: lion refuses them: "),
        ("prodigy", {"d0": "x", "betas": 3}, r"optimizer_args: prodigy refuses them: "),
    ],
)
def test_impossible_arguments_are_named(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, lora_factors(), **arguments)


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("lion", "pytorch_optimizer")]
)
def test_missing_package_is_named_with_its_install_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_or_fail(module: str) -> object:
        if module.startswith(package):
            raise ImportError(module)
        return import_module(module)

    monkeypatch.setattr("lorasmith.loops.optimization.optimizers.import_module", import_or_fail)
    with pytest.raises(ConfigError, match=rf"{name} needs the package {package}; install it with "
                       r"pip install 'lorasmith\[optimizers\]'"):  # fmt: skip
        build(name, lora_factors())


@pytest.mark.parametrize("spelling", ["AdamW8bit", "ADAMW8BIT", "AdamW", "Prodigy", "AdaFactor"])
def test_setting_accepts_optimizer_names_in_any_case(spelling: str) -> None:
    assert TrainerConfig(optimizer=spelling).optimizer == spelling.lower()


def test_setting_refuses_an_unknown_optimizer_and_suggests_a_name() -> None:
    with pytest.raises(ConfigError, match="no optimizer 'adanw'; did you mean 'adamw'"):
        TrainerConfig(optimizer="adanw")


def test_registered_optimizer_class_is_enough() -> None:
    OPTIMIZERS.register("toy_sgd", OptimizerSpec(torch.optim.SGD, {"momentum": 0.5}, moments=1))
    try:
        optimizer = build("Toy_SGD", lora_factors(), dampening=0.1)
    finally:
        OPTIMIZERS.unregister("toy_sgd")
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["dampening"]) == (0.5, 0.1)
