"""`lorasmith.inject` and `lorasmith.save_lora` on a plain diffusers U-Net."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lorasmith
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.nn.init import GAUSSIAN, AdapterInit
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.registries import ADAPTER_INITS


@pytest.fixture
def unet(tiny_model: Path) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet", local_files_only=True)
    return unet.requires_grad_(False).eval()


@pytest.fixture
def batch(unet: Any) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    return noisy, target, text


def predict(unet: Any, noisy: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return unet(noisy, torch.tensor([10, 500]), text).sample


def train(unet: Any, lora: lorasmith.InjectedLora, batch: Any, steps: int = 8) -> list[float]:
    noisy, target, text = batch
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = (predict(unet, noisy, text) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "compensated", "pissa"])
def test_untrained_adapters_change_nothing_and_remove_restores(
    unet: Any, batch: Any, init: str
) -> None:
    noisy, _, text = batch
    modules = {name: id(module) for name, module in unet.named_modules()}
    before = predict(unet, noisy, text)
    with lorasmith.inject(unet, rank=2, init=init, targets="attention") as lora:
        assert len(lora) == len(lora.layers()) > 0
        torch.testing.assert_close(predict(unet, noisy, text), before, rtol=0, atol=1e-5)
    assert {name: id(module) for name, module in unet.named_modules()} == modules
    assert torch.equal(predict(unet, noisy, text), before)


def test_training_lowers_the_loss_and_leaves_the_unet_alone(unet: Any, batch: Any) -> None:
    weights = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    lora = lorasmith.inject(unet, rank=4, alpha=8.0, targets=["to_q", "to_k", "to_v", "to_out.0"])
    losses = train(unet, lora, batch)
    assert losses[-1] < losses[0]
    lora.remove()
    assert all(torch.equal(weights[key], tensor) for key, tensor in unet.state_dict().items())


@pytest.mark.parametrize("init", ["gaussian", "compensated"])
def test_saved_file_gives_the_trained_output_again(
    unet: Any, batch: Any, tmp_path: Path, init: str
) -> None:
    noisy, _, text = batch
    lora = lorasmith.inject(unet, rank=3, targets="attention+ff", init=init, tag="inkmono")
    train(unet, lora, batch, steps=3)
    trained = predict(unet, noisy, text)
    path = lorasmith.save_lora(
        lora, tmp_path / "mine.safetensors", {"modelspec.author": "me"}, torch.float32
    )
    layers = lora.layers()
    lora.remove()

    file = load_lora_file(path)
    assert file.metadata["lorasmith.tag"] == "inkmono"
    assert file.metadata["modelspec.author"] == "me"
    assert file.metadata["ss_network_dim"] == ("6" if init == "compensated" else "3")
    for name, layer in file.layers.items():
        torch.testing.assert_close(layer.delta(), layers[name].delta())
    assert lorasmith.lora_info(path).family == "sd1"

    pytest.importorskip("peft", reason="diffusers needs peft to load LoRA files")
    from diffusers import StableDiffusionPipeline

    state, alphas, *_ = StableDiffusionPipeline.lora_state_dict(
        tmp_path, weight_name=path.name, unet_config=unet.config, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    torch.testing.assert_close(predict(unet, noisy, text), trained, rtol=1e-4, atol=1e-4)


def test_state_dict_restores_the_adapters(unet: Any, batch: Any) -> None:
    lora = lorasmith.inject(unet, rank=2, targets="mid", init="pissa")
    start = {key: tensor.clone() for key, tensor in lora.state_dict().items()}
    train(unet, lora, batch, steps=2)
    assert not all(torch.equal(start[key], tensor) for key, tensor in lora.state_dict().items())
    lora.load_state_dict(start)
    assert all(torch.equal(start[key], tensor) for key, tensor in lora.state_dict().items())
    with pytest.raises(WeightsError, match="tensors are missing, unknown or of another shape"):
        lora.load_state_dict({})


def test_sdxl_layers_have_sgm_names(tiny_sdxl: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet", local_files_only=True)
    lora = lorasmith.inject(unet, rank=1, targets="attention@up")
    assert lora.family == "sdxl"
    assert all(name.startswith("lora_unet_output_blocks_") for name in lora.adapters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank 0 must be 1 or more"),
        ({"rank": 2.5}, "rank 2.5 must be a whole number"),
        ({"init": True}, "init True a name"),
        ({"alpha": 0}, "alpha 0 must be above 0"),
        ({"dropout": 1.0}, "dropout 1.0 from 0 to 1"),
        ({"targets": "atention"}, "no preset 'atention'; did you mean"),
        ({"init": "gausian"}, "no adapter initialisation 'gausian'; did you mean 'gaussian'"),
    ],
)
def test_impossible_arguments_are_refused(
    unet: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lorasmith.inject(unet, **arguments)


def test_other_modules_and_file_names_are_refused(unet: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes the result of inject, not UNet2DConditionModel"):
        lorasmith.save_lora(unet, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="Linear is no diffusers U-Net"):
        lorasmith.inject(torch.nn.Linear(2, 2))
    lora = lorasmith.inject(unet, rank=1, targets="mid")
    with pytest.raises(ConfigError, match=r"name ends in \.safetensors"):
        lorasmith.save_lora(lora, tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match="layers are zero"):
        lorasmith.save_lora(lora, tmp_path / "mine.safetensors")


@pytest.fixture
def ones_init() -> Iterator[None]:
    """An initialisation from outside the package: A is all ones."""

    def draw_ones(*arguments: Any) -> Any:
        factors = GAUSSIAN.draw_factors(*arguments)
        return factors._replace(down=torch.ones_like(factors.down))

    ADAPTER_INITS.register("ones", AdapterInit(draw_ones))
    yield
    ADAPTER_INITS.unregister("ones")


@pytest.mark.usefixtures("ones_init")
def test_registered_initialisation_is_used(unet: Any) -> None:
    lora = lorasmith.inject(unet, rank=2, targets="mid", init="ones")
    assert all(bool((adapter.down == 1).all()) for adapter in lora.adapters.values())


def test_second_injection_is_refused_until_the_first_is_removed(unet: Any) -> None:
    first = lorasmith.inject(unet, rank=2, targets="attention")
    with pytest.raises(ConfigError, match=r"has adapters already; take them out.*remove\(\)"):
        lorasmith.inject(unet, rank=2, targets="attention")
    first.remove()
    with lorasmith.inject(unet, rank=2, targets="attention") as second:
        assert len(second) > 0
