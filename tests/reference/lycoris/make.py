"""Make `layers.safetensors`: small layers as LyCORIS draws with them, and their files' tensors.

    pip install lycoris-lora==4.1.3 && python tests/reference/lycoris/make.py

Seed 0, torch 2.11, CPU, float32. Each case has the tensors that LyCORIS saves (`CASE/NAME`), the
base layer's weight (`CASE/base`), an input (`CASE/x`) and what the adapted layer makes of it
(`CASE/y`).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent


def cases() -> dict[str, tuple[str, nn.Module, dict[str, Any]]]:
    """Return kind, base layer and settings of each case."""
    dora = {"weight_decompose": True}
    return {
        "loha linear": ("loha", nn.Linear(12, 16, bias=False), {}),
        "loha conv": ("loha", nn.Conv2d(6, 8, 3, padding=1, bias=False), {}),
        "loha conv tucker": (
            "loha", nn.Conv2d(6, 8, 3, padding=1, bias=False), {"use_tucker": True}),
        "lokr linear": ("lokr", nn.Linear(24, 32, bias=False), {"lora_dim": 2}),
        "lokr both": (
            "lokr", nn.Linear(64, 64, bias=False),
            {"lora_dim": 2, "decompose_both": True, "factor": 8}),
        "lokr full": ("lokr", nn.Linear(12, 16, bias=False), {"full_matrix": True}),
        "lokr conv": ("lokr", nn.Conv2d(24, 32, 3, padding=1, bias=False), {"lora_dim": 2}),
        "lokr conv tucker": (
            "lokr", nn.Conv2d(24, 32, 3, padding=1, bias=False),
            {"lora_dim": 2, "use_tucker": True}),
        "locon conv": ("locon", nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), {}),
        "locon conv tucker": (
            "locon", nn.Conv2d(6, 8, 3, padding=1, bias=False), {"use_tucker": True}),
        "dora output": ("locon", nn.Linear(12, 16, bias=False), dora),
        "dora input": ("locon", nn.Linear(12, 16, bias=False), dora | {"wd_on_out": False}),
        "dora conv output": ("locon", nn.Conv2d(6, 8, 3, padding=1, bias=False), dora),
        "dora conv input": (
            "locon", nn.Conv2d(6, 8, 3, padding=1, bias=False), dora | {"wd_on_out": False}),
        "dora of loha": ("loha", nn.Linear(12, 16, bias=False), dora),
    }  # fmt: skip


@torch.no_grad()
def make() -> dict[str, torch.Tensor]:
    """Return all tensors."""
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    kinds = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}
    torch.manual_seed(0)
    recorded: dict[str, torch.Tensor] = {}
    for name, (kind, base, settings) in cases().items():
        weight = base.weight.clone()
        module = kinds[kind]("layer", base, 1.0, **{"lora_dim": 3, "alpha": 2.0, **settings})
        for parameter in module.parameters():
            if parameter is not base.weight:
                parameter.add_(0.3 * torch.randn_like(parameter))
        width = weight.shape[1]
        x = torch.randn(5, width) if weight.ndim == 2 else torch.randn(2, width, 6, 6)
        module.apply_to()
        tensors = {**module.custom_state_dict(), "base": weight, "x": x, "y": base(x)}
        recorded |= {f"{name}/{key}": tensor.detach().clone() for key, tensor in tensors.items()}
    return recorded


if __name__ == "__main__":
    sys.exit(save_file(make(), FOLDER / "layers.safetensors"))
