import pytest
import torch
from torch import nn

from lorasmith.loops.ema import Ema


def updated(decay: float, updates: int) -> tuple[nn.Module, Ema, dict[str, torch.Tensor]]:
    """A module moved at random with its average, and a plain float64 reference of it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    module[0].bias.requires_grad_(False)
    ema = Ema(module, decay)
    expected = {n: p.detach().double() for n, p in module.named_parameters() if p.requires_grad}
    for update in range(updates):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update()
        keep = min(decay, (1 + update) / (10 + update))
        live = dict(module.named_parameters())
        for name, average in expected.items():
            expected[name] = keep * average + (1 - keep) * live[name].detach().double()
    return module, ema, expected


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.999])  # 0.2 is reached after two updates
def test_average_equals_a_plain_reference(decay: float) -> None:
    _, ema, expected = updated(decay, 12)
    state = ema.state_dict()
    assert state.pop("__updates__") == 12
    assert state.keys() == expected.keys() == {"0.weight", "1.weight"}
    for name, average in expected.items():
        torch.testing.assert_close(state[name].double(), average, atol=1e-5, rtol=1e-5)


def test_average_parameters_restores_the_weights_exactly() -> None:
    module, ema, expected = updated(0.9, 5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with ema.average_parameters():
        inside = {name: value.clone() for name, value in module.state_dict().items()}
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(inside["0.bias"], before["0.bias"])  # frozen, so not averaged
    for name, average in expected.items():
        torch.testing.assert_close(inside[name].double(), average, atol=1e-5, rtol=1e-5)
        assert not torch.equal(inside[name], before[name])


def test_restored_average_continues_identically() -> None:
    module, ema, _ = updated(0.9, 4)
    saved = {name: value.clone() for name, value in ema.state_dict().items()}
    ema.update()
    other = Ema(module, 0.9)
    other.load_state_dict(saved)
    other.update()
    for expected_param, param in zip(ema.shadow_params, other.shadow_params, strict=True):
        assert torch.equal(expected_param, param)
    with pytest.raises(KeyError):
        other.load_state_dict({"__updates__": torch.tensor(0.0)})


def test_weights_are_restored_after_an_error() -> None:
    module, ema, _ = updated(0.9, 5)
    before = module[0].weight.detach().clone()

    def fail() -> None:
        with ema.average_parameters():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(module[0].weight, before)
