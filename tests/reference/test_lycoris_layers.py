"""LoHa, LoKr, LoCon and DoRA draw as LyCORIS itself does; `lycoris/make.py` says with what."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.adapters.kinds.lora import LoraLayer

STORED = load_file(Path(__file__).parent / "lycoris" / "layers.safetensors")
CASES = sorted({key.split("/")[0] for key in STORED})
NAME = "lora_unet_mid_block_attentions_0_proj_in"


def parts_of(case: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(f"{case}/"): t for key, t in STORED.items() if key.startswith(f"{case}/")
    }


@pytest.mark.parametrize("case", CASES)
def test_layer_draws_as_lycoris_draws(tmp_path: Path, case: str) -> None:
    parts = parts_of(case)
    base, x, expected = (parts.pop(key) for key in ("base", "x", "y"))
    path = tmp_path / "layer.safetensors"
    save_file({f"{NAME}.{key}": tensor for key, tensor in parts.items()}, path)
    file = load_lora_file(path)
    copy = tmp_path / "again.safetensors"
    save_lora_file(copy, file.layers, {}, torch.float32)

    layer = file.layers[NAME]
    assert layer.kind.lower().startswith(case.split(" ")[0][:4]) or isinstance(layer, LoraLayer)
    stride = 6 // expected.shape[-1] if expected.ndim == 4 else 1
    for loaded in (layer, load_lora_file(copy).layers[NAME]):
        weight = base + loaded.delta_for(base)
        y = F.linear(x, weight) if x.ndim == 2 else F.conv2d(x, weight, stride=stride, padding=1)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    plain = F.linear(x, base) if x.ndim == 2 else F.conv2d(x, base, stride=stride, padding=1)
    assert not torch.allclose(plain, expected, atol=0.1), "the adapter changes the output"


def test_every_adapter_kind_is_recorded() -> None:
    kinds = {case.split(" ")[0] for case in CASES}
    assert kinds == {"loha", "lokr", "locon", "dora"}
    assert len(CASES) == 15
