import json

import pytest
import torch
from torch import nn

from lorasmith.loops.optimization.optimizer_state import (
    pack_optimizer_state,
    unpack_optimizer_state,
)
from lorasmith.pretraining.optimizer import adamw, set_learning_rate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def move(module: nn.Module, optimizer: torch.optim.Optimizer, step: int, rate: float) -> None:
    set_learning_rate(optimizer, rate)
    torch.manual_seed(step)
    module(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_matrices_decay() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    groups = adamw([module], 0.5, 0.1).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0, 4)]
    assert groups[0]["params"][0] is module[2].weight
    assert float(groups[0]["lr"]) == 0.5


@pytest.mark.parametrize("plain_rate", [False, True])
def test_restored_optimizer_takes_identical_steps(plain_rate: bool) -> None:
    def make(module: nn.Module) -> torch.optim.Optimizer:
        if plain_rate:
            return torch.optim.AdamW(module.parameters(), lr=0.1)
        return adamw([module], 0.1, 0.01)

    straight = network()
    optimizer = make(straight)
    for step in range(3):
        move(straight, optimizer, step, 0.1 / (step + 1))
    tensors, plain = pack_optimizer_state(optimizer)
    tensors = {name: value.clone() for name, value in tensors.items()}
    plain = json.loads(json.dumps(plain))
    resumed = network()
    resumed.load_state_dict({k: v.clone() for k, v in straight.state_dict().items()})
    other = make(resumed)
    rate = other.param_groups[0]["lr"]
    unpack_optimizer_state(other, tensors, plain)
    assert float(other.param_groups[0]["lr"]) == pytest.approx(0.1 / 3)
    if not plain_rate:  # still the tensor that a recorded step reads
        assert other.param_groups[0]["lr"] is rate
    for step in range(3, 6):
        move(straight, optimizer, step, 0.01)
        move(resumed, other, step, 0.01)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_state_of_another_network_is_refused() -> None:
    tensors, plain = pack_optimizer_state(adamw([network()], 0.1, 0.01))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        unpack_optimizer_state(adamw([nn.Linear(2, 2, bias=False)], 0.1, 0.0), tensors, plain)
