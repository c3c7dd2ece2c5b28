"""Adapters for training, as a matrix: every family, init and target against the same checks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.model_outputs import prediction
from helpers.tiny_models import open_model
from lorasmith.adapters.files.lora_file import LoraFile, load_lora_file, save_lora_file
from lorasmith.adapters.files.metadata import LoraMetadata, PartSummary, build_metadata
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.injection.trainable import (
    TrainableLora,
    export_layers,
    inject_trainable,
    summarize_parts,
)
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.lora import LoraConfig
from lorasmith.config.optimization import TrainerConfig
from lorasmith.core.errors import WeightsError
from lorasmith.models.model import Model
from lorasmith.models.text.encode import encode_tokens, tokenize_texts

RATES = TrainerConfig(learning_rate=1e-3, text_encoder_lr=4e-4)
FOLDERS = {"sd1": "tiny_model", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}
ALL_TARGETS = "all-linear+conv+text-encoder"

CONFIGURATIONS = [
    *((family, {"targets": ALL_TARGETS, "init": init})
      for family in FOLDERS for init in ("gaussian", "kaiming", "compensated", "pissa")),
    *(("sd1", {"targets": targets})
      for targets in ("cross-attention", "self-attention", "attention", "attention+ff", "+conv",
                      "text-encoder", "all-linear", "mid", "up.1+conv", "*.attn2.to_k")),
    *((family, {"targets": "attention", "rslora": True, "rank": 9, "alpha": 2.0, "init": init})
      for family in ("sd1", "sdxl") for init in ("gaussian", "pissa")),
    ("sd1", {"targets": ALL_TARGETS, "dropout": 0.4, "init": "compensated"}),
    ("sdxl", {"targets": "b-lora", "overrides": ({"targets": "b-lora-style", "rank": 8},)}),
    ("sd1", {"targets": "attention", "overrides": ({"targets": "text-encoder", "rank": 2},
                                               {"targets": "conv@up", "alpha": 1.0})}),
]  # fmt: skip


def settings_of(changes: dict) -> LoraConfig:
    return LoraConfig.model_validate({"rank": 4, "alpha": 3.0, **changes})


def injected(model: Model, lora: LoraConfig, seed: int = 0) -> TrainableLora:
    return inject_trainable(resolve_targets(model, lora, RATES), lora, seed)


def move(trainable: TrainableLora) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in trainable.parameters():
            factor += 0.1 * torch.randn(factor.shape, generator=generator)


def modules_of(model: Model) -> list[dict[str, int]]:
    networks: list[nn.Module] = [model.unet, *model.text_encoders]
    return [{name: id(module) for name, module in network.named_modules()} for network in networks]


@pytest.fixture
def models(request: pytest.FixtureRequest):
    def load(family: str) -> Model:
        folder = request.getfixturevalue(FOLDERS[family])
        return open_model(folder)

    return load


@pytest.mark.parametrize(
    ("family", "changes"), CONFIGURATIONS, ids=[f"{f}-{c}" for f, c in CONFIGURATIONS]
)
def test_adapters_train_switch_off_and_are_restored_from_their_file(
    models, tmp_path: Path, family: str, changes: dict
) -> None:
    model, lora = models(family), settings_of(changes)
    base, modules = prediction(model), modules_of(model)
    weights = {k: v.clone() for k, v in model.unet.state_dict().items()}

    trainable = injected(model, lora)
    assert torch.equal(prediction(model), base), "the start is the base"
    move(trainable)
    trainable.train(False)
    changed = prediction(model)
    assert not torch.allclose(changed, base, atol=1e-4), "the adapters change the output"
    trainable.set_strength(0.0)
    assert torch.equal(prediction(model), base), "off is the base, bit for bit"
    trainable.set_strength(1.0)
    assert torch.equal(prediction(model), changed)

    path = tmp_path / "lora.safetensors"
    save_lora_file(path, export_layers(trainable), {}, torch.float32)
    trainable.detach()
    assert modules_of(model) == modules, "the same objects are back"
    assert torch.equal(prediction(model), base)
    assert all(torch.equal(v, weights[k]) for k, v in model.unet.state_dict().items())

    attached = attach_lora(model, load_lora_file(path))
    torch.testing.assert_close(prediction(model), changed, rtol=1e-4, atol=1e-5)
    attached.detach()
    assert modules_of(model) == modules


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "compensated", "pissa"])
def test_start_follows_the_seed(models, init: str) -> None:
    model, lora = models("sd1"), settings_of({"init": init, "targets": "attention"})
    states = []
    for seed in (0, 0, 1):
        trainable = injected(model, lora, seed)
        states.append([adapter.down.detach().clone() for adapter in trainable.adapters.values()])
        trainable.detach()
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    # The directions of pissa are the weight's own, but where the rank exceeds the weight's.
    equal = [torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True)]
    assert not any(equal) or init == "pissa"


def test_groups_have_the_rates_of_their_parts(models) -> None:
    lora = settings_of(
        {
            "targets": "attention+text-encoder",
            "overrides": ({"targets": "mid", "learning_rate": 5e-5}, {"targets": "up.1"}),
        }
    )
    trainable = injected(models("sd1"), lora)
    groups = trainable.parameter_groups()
    assert [(g.part, g.factor, g.learning_rate) for g in groups] == [
        ("unet", "down", 1e-3), ("unet", "up", 1e-3), ("up.1", "down", 1e-3),
        ("up.1", "up", 1e-3), ("mid", "down", 5e-5), ("mid", "up", 5e-5),
        ("text", "down", 4e-4), ("text", "up", 4e-4),
    ]  # fmt: skip
    grouped = [id(p) for group in groups for p in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in trainable.parameters()}
    assert trainable.trains_text_encoder
    ups = {id(adapter.up) for adapter in trainable.adapters.values()}
    assert all({id(p) in ups for p in g.parameters} == {g.factor == "up"} for g in groups)


def test_half_precision_models_train_float32_adapters(models) -> None:
    model = models("sdxl").to(torch.device("cpu"), torch.bfloat16)
    base = prediction(model)
    trainable = injected(model, settings_of({"targets": ALL_TARGETS, "init": "compensated"}))
    assert base.dtype == torch.bfloat16
    assert {p.dtype for p in trainable.parameters()} == {torch.float32}
    assert torch.equal(prediction(model), base)


def test_gradients_reach_the_adapters_alone(models) -> None:
    model = models("sd1")
    trainable = injected(model, settings_of({"targets": ALL_TARGETS, "init": "pissa"}))
    assert all(p.requires_grad for p in trainable.parameters())
    context, _ = encode_tokens(model, tokenize_texts(model, ["a red apple"]))
    # Large enough for several positions in the middle, where one has nothing else to attend to.
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model.unet(latents, torch.tensor([5]), context, return_dict=False)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable.parameters())
    parameter_ids = {id(p) for p in trainable.parameters()}
    for network in (model.unet, *model.text_encoders):
        other_layers = [p for p in network.parameters() if id(p) not in parameter_ids]
        assert not any(p.requires_grad or p.grad is not None for p in other_layers)


def test_detaching_works_twice_and_under_another_lora(models) -> None:
    model = models("sd1")
    base, modules = prediction(model), modules_of(model)
    first = injected(model, settings_of({"targets": "attention", "init": "compensated"}))
    second = injected(model, settings_of({"targets": "all-linear"}), seed=1)
    move(first), move(second)
    first.detach()
    first.detach()
    assert any(isinstance(module, LoraWrapper) for module in model.unet.modules())
    second.detach()
    assert modules_of(model) == modules
    assert torch.equal(prediction(model), base)


def test_untrained_start_is_not_saved(models, tmp_path: Path) -> None:
    """Its factors are not zero, but their product is."""
    trainable = injected(models("sd1"), settings_of({"init": "compensated"}))
    with pytest.raises(WeightsError, match="layers are zero"):
        save_lora_file(tmp_path / "x.safetensors", export_layers(trainable), {})


def test_rslora_is_exported_as_ordinary_alpha(models) -> None:
    lora = settings_of({"rank": 16, "alpha": 4.0, "rslora": True, "targets": "mid"})
    trainable = injected(models("sd1"), lora)
    for name, layer in export_layers(trainable).items():
        assert layer.alpha / len(layer.down) == pytest.approx(4.0 / 16**0.5)
        assert trainable.adapters[name].scale == pytest.approx(4.0 / 16**0.5)


def test_all_layers_of_a_file_share_alpha(models) -> None:
    """diffusers would miss others; ranks may differ, and the product is what was trained."""
    parts = ({"targets": "mid", "rank": 2, "alpha": 5.0}, {"targets": "up.1", "alpha": 0.5})
    trainable = injected(models("sd1"), settings_of({"targets": "attention", "overrides": parts}))
    move(trainable)
    layers = export_layers(trainable)
    assert {layer.alpha for layer in layers.values()} == {3.0}
    assert {len(layer.down) for layer in layers.values()} == {2, 4}
    for name, layer in layers.items():
        product = layer.up.flatten(1) @ layer.down.flatten(1) * (layer.alpha / len(layer.down))
        expected = trainable.adapters[name].delta_weight()
        torch.testing.assert_close(product.reshape(expected.shape), expected)


def test_metadata_summarizes_the_parts(models) -> None:
    lora = settings_of(
        {
            "targets": "attention",
            "init": "compensated",
            "overrides": ({"targets": "text-encoder", "rank": 2}, {"targets": "mid", "alpha": 1.0}),
        }
    )
    parts = summarize_parts(injected(models("sd1"), lora))
    assert parts == {
        "unet": PartSummary(8, 6.0, 15 * 8),
        "text-encoder": PartSummary(4, 4.0, 12),
        "mid": PartSummary(8, 2.0, 12),
    }
    lora_metadata = LoraMetadata("ink", "inkmono", "sdxl", "epsilon", parts, 1024, {}, "pictures")
    data = build_metadata(lora_metadata)
    assert (data["ss_network_dim"], data["ss_network_alpha"]) == ("8", "6")
    assert json.loads(data["ss_network_args"])["parts"]["text-encoder"] == {
        "rank": 4, "alpha": 4.0, "layers": 12,
    }  # fmt: skip
    assert data["ss_base_model_version"] == "sdxl_base_v1-0"
    assert data["ss_v2"] == "False"
    assert data["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


# --- SDXL files of both namings ---------------------------------------------------------------


def test_sdxl_files_with_diffusers_names_are_read(models) -> None:
    from lorasmith.adapters.naming.layer_names import find_name_aliases

    model = models("sdxl")
    trainable = injected(model, settings_of({"targets": ALL_TARGETS}))
    move(trainable)
    layers = export_layers(trainable)
    changed = prediction(model)
    trainable.detach()
    back = {alias: name for name, alias in find_name_aliases(model).items()}
    renamed = {back.get(name, name): layer for name, layer in layers.items()}
    assert any(name.startswith("lora_unet_down_blocks_") for name in renamed)

    attached = attach_lora(model, LoraFile(Path("x.safetensors"), renamed, {}))
    torch.testing.assert_close(prediction(model), changed, rtol=1e-4, atol=1e-5)
    attached.detach()

    name = next(name for name in renamed if name.startswith("lora_unet_down_blocks_"))
    duplicated = {**renamed, find_name_aliases(model)[name]: renamed[name]}
    with pytest.raises(WeightsError, match="1 layers are in it under two names"):
        attach_lora(model, LoraFile(Path("x.safetensors"), duplicated, {}))


def test_files_of_other_families_are_named(models) -> None:
    layers = {}
    for family in ("sd1", "sdxl"):
        trainable = injected(models(family), settings_of({"targets": "attention"}))
        layers[family] = export_layers(trainable)
    xl = LoraFile(Path("xl.safetensors"), layers["sdxl"], {})
    with pytest.raises(WeightsError, match="made for SDXL: open it with an SDXL model"):
        attach_lora(models("sd1"), xl)
    sd1 = LoraFile(Path("one.safetensors"), layers["sd1"], {"ss_base_model_version": "sd_v1"})
    with pytest.raises(WeightsError, match=r"by its metadata it was made for SD 1\.x"):
        attach_lora(models("sdxl"), sd1)
