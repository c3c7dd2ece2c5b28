"""A step of a patched network computes what a step of diffusers' own code does.

The kernels are replaced by torch's own operations, in float64 on the CPU: these tests show that
everything fits together, in networks and steps of every kind.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.training.datasets import write
from helpers.training.joint_loras import RATES, JointLoras
from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.nn.lora import Factors, LoraLinear
from lorasmith.adapters.nn.wrapper import LoraWrapper
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, TrainConfig
from lorasmith.core.errors import LorasmithWarning
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.ops import fp8, geglu, group_norm
from lorasmith.training import run_step
from lorasmith.training.acceleration import factor_cache, module_patch, unet_patches
from lorasmith.training.acceleration.activation_checkpointing import (
    ActivationCheckpointer,
    measure_saved_bytes,
)
from lorasmith.training.acceleration.factor_cache import build_factor_cache
from lorasmith.training.acceleration.unet_patches import UNetPatcher
from lorasmith.training.run_step import JointTrainStep
from lorasmith.training.setup.setup import open_trainer
from lorasmith.training.step.train_step import LossInput

CPU = torch.device("cpu")
ALL_LAYERS = "all-linear+conv"


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet_patches, "is_available", lambda device: True)
    monkeypatch.setattr(factor_cache, "_is_on_gpu", lambda layer: True)
    monkeypatch.setattr(geglu, "geglu", geglu.geglu_reference)
    monkeypatch.setattr(group_norm, "group_norm", group_norm.group_norm_reference)
    monkeypatch.setattr(group_norm, "add_with_bias", group_norm.add_with_bias_reference)


@contextmanager
def accelerated(network: nn.Module, adapters: list[nn.Module]) -> Iterator[int]:
    """Patch a network as in a step; yield how many layers are fused with their adapters."""
    cache = build_factor_cache(network, adapters)
    with UNetPatcher(network).patched():
        cache.refresh()
        yield len(cache)
        cache.clear()


def add_adapters(model: Model, targets: str, **options: Any) -> TrainableLora:
    """Add adapters in float64 that change the output."""
    lora = LoraConfig(rank=2, targets=targets, **options)
    trainable = inject_trainable(resolve_targets(model, lora, RATES), lora, 0)
    torch.manual_seed(4)
    for adapter in trainable.adapters.values():
        adapter.double()
        nn.init.normal_(adapter.up, std=0.2)
    return trainable


def make_inputs(network: Any) -> dict[str, Any]:
    """Return the inputs of a U-Net for two images."""
    torch.manual_seed(5)
    config = network.config
    inputs = {
        "sample": torch.randn(2, config.in_channels, 8, 12, dtype=torch.double),
        "timestep": torch.tensor([7, 500]),
        "encoder_hidden_states": torch.randn(2, 6, config.cross_attention_dim).double(),
    }
    inputs["encoder_hidden_states"].requires_grad_()
    if config.addition_embed_type == "text_time":
        ids = 5 if config.projection_class_embeddings_input_dim == 64 else 6
        width = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        text = torch.randn(2, width, dtype=torch.double, requires_grad=True)
        sizes = torch.full((2, ids), 64.0, dtype=torch.double)
        inputs["added_cond_kwargs"] = {"text_embeds": text, "time_ids": sizes}
    return inputs


def output_and_grads(network: Any, factors: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return a prediction, and the gradients of the factors and of the text embeddings."""
    inputs = make_inputs(network)
    y = network(**inputs).sample
    texts = [inputs["encoder_hidden_states"]]
    texts += [
        tensor for tensor in inputs.get("added_cond_kwargs", {}).values() if tensor.requires_grad
    ]
    torch.manual_seed(6)
    loss = (y * torch.randn(y.shape, dtype=torch.double)).sum()
    return [y.detach(), *torch.autograd.grad(loss, [*factors, *texts])]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, reference in zip(actual, expected, strict=True):
        scale = float(reference.abs().max())
        assert scale > 0
        torch.testing.assert_close(result, reference, atol=1e-9 * scale, rtol=0)


def state_of(network: nn.Module) -> list[Any]:
    """Return what patches and the factor cache change in a network."""
    names = ("fused_factors", "fp8_weight", "_compiled_call_impl")
    return [
        (type(module), [vars(module).get(name) for name in names]) for module in network.modules()
    ]


FAMILIES = ["sd1", "sd2", "sdxl", "sdxl-refiner", "sd1-inpainting"]


@pytest.mark.parametrize("family", FAMILIES)
def test_patched_networks_of_every_family_give_the_same_gradients(
    tiny_of: Callable[[str], Path], family: str
) -> None:
    model = load_model(tiny_of(family)).to(CPU, torch.float64)
    network = model.unet
    trainable = add_adapters(model, ALL_LAYERS)
    before, plain = output_and_grads(network, trainable.parameters()), state_of(network)
    checkpointer = ActivationCheckpointer(network)
    for blocks in ([], checkpointer.blocks[::2]):
        checkpointer.select(blocks)
        with accelerated(network, list(trainable.adapters.values())) as fused:
            assert fused > 40
            assert state_of(network) != plain
            assert_same(output_and_grads(network, trainable.parameters()), before)
        assert state_of(network) == plain
    checkpointer.select([])
    # Equal except for rounding: convolutions' weights keep the channels-last format.
    assert_same(output_and_grads(network, trainable.parameters()), before)


@pytest.mark.parametrize(
    "options",
    [
        {"only_cross_attention": True},
        {"use_linear_projection": True, "upcast_attention": True},
        {"mid_block_only_cross_attention": True},
        {"attention_head_dim": (2, 4), "transformer_layers_per_block": 2},
        {"resnet_time_scale_shift": "scale_shift"},
        {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_patched_unusual_networks_give_the_same_gradients(options: dict[str, Any]) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    defaults = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    }
    network: Any = UNet2DConditionModel(
        sample_size=8,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        cross_attention_dim=8,
        layers_per_block=1,
        **defaults | options,
    )
    network.requires_grad_(False).double()
    inputs = make_inputs(network)
    text = inputs["encoder_hidden_states"]

    def run() -> list[torch.Tensor]:
        y = network(**inputs).sample
        torch.manual_seed(6)
        (grad,) = torch.autograd.grad((y * torch.randn(y.shape).double()).sum(), text)
        return [y.detach(), grad]

    before, plain = run(), state_of(network)
    with UNetPatcher(network).patched():
        assert state_of(network) != plain
        assert_same(run(), before)
    assert state_of(network) == plain


def test_network_on_a_cpu_is_not_patched(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet_patches, "is_available", lambda device: False)
    network = load_model(tiny_model).unet
    plain = state_of(network)
    with UNetPatcher(network).patched():
        assert state_of(network) == plain


def test_failing_step_leaves_the_network_unpatched(tiny_model: Path) -> None:
    model = load_model(tiny_model).to(CPU, torch.float64)
    add_adapters(model, ALL_LAYERS)
    plain, names = state_of(model.unet), list(model.unet.state_dict())

    def fail() -> None:
        assert state_of(model.unet) != plain
        assert list(model.unet.state_dict()) == names
        raise ValueError("in the step")

    unet_patcher = UNetPatcher(model.unet)
    with pytest.raises(ValueError, match="in the step"), unet_patcher.patched():
        fail()
    assert state_of(model.unet) == plain


@pytest.mark.parametrize("options", [{"dropout": 0.2}, {"init": "compensated"}], ids=str)
def test_patched_network_with_dropout_or_an_initial_product_gives_the_same_gradients(
    tiny_model: Path, options: dict[str, Any]
) -> None:
    model = load_model(tiny_model).to(CPU, torch.float64)
    trainable = add_adapters(model, "attention", **options)

    def run() -> list[torch.Tensor]:
        torch.manual_seed(3)  # of the dropout
        return output_and_grads(model.unet, trainable.parameters())

    before = run()
    with accelerated(model.unet, list(trainable.adapters.values())) as fused:
        assert fused == 0
        assert_same(run(), before)


def test_quantized_weights_do_not_count_as_saved_bytes(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(fp8, "MIN_TOKENS", 0)
    model = load_model(tiny_model).to(CPU, torch.bfloat16)
    lora = LoraConfig(rank=2, targets="attention")
    trainable = inject_trainable(resolve_targets(model, lora, RATES), lora, 0)
    inputs = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in make_inputs(model.unet).items()
    }
    network, adapters = model.unet, list(trainable.adapters.values())
    blocks = ActivationCheckpointer(network).blocks

    def saved_bytes(use_fp8: bool) -> list[int]:
        unet_patcher = UNetPatcher(network, use_fp8)
        cache = build_factor_cache(network, adapters)

        def step() -> None:
            with unet_patcher.patched():
                cache.refresh()
                network(**inputs)
                cache.clear()

        return list(measure_saved_bytes(blocks, step).values())

    plain = saved_bytes(False)
    assert sum(plain) > 0
    assert saved_bytes(True) == plain


@pytest.mark.filterwarnings("ignore:training is slower than it could be")
def test_untested_diffusers_runs_unpatched(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_patch, "diffusers_version", lambda: "99.0.0")
    model = load_model(tiny_model).to(CPU, torch.float64)
    trainable = add_adapters(model, ALL_LAYERS)
    before = output_and_grads(model.unet, trainable.parameters())
    with accelerated(model.unet, list(trainable.adapters.values())):
        kinds = {type(module).__module__ for module in model.unet.modules()}
        assert not any(
            kind.startswith("lorasmith.training.acceleration.attention") for kind in kinds
        )
        assert_same(output_and_grads(model.unet, trainable.parameters()), before)


# --- compiling ----------------------------------------------------------------------------------


class OneBlockUNet(nn.Module):
    """The part of a U-Net that is compiled."""

    def __init__(self) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        torch.manual_seed(0)
        self.block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=12)
        self.requires_grad_(False).double()
        for layers, name in ((self.block.attn1, "to_q"), (self.block.ff.net[0], "proj")):
            layer = LoraWrapper(getattr(layers, name))
            out, width = layer.weight.shape
            factors = Factors(torch.randn(2, width).double(), torch.randn(out, 2).double())
            layer.adapters.append(LoraLinear(factors, 1.0))
            setattr(layers, name, layer)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.block(x, encoder_hidden_states=text)

    def output_and_grads(self) -> list[torch.Tensor]:
        torch.manual_seed(1)
        y = self(torch.randn(2, 5, 16).double(), torch.randn(2, 7, 12).double())
        factors = [factor for factor in self.parameters() if factor.requires_grad]
        return [y.detach(), *torch.autograd.grad(y.square().sum(), factors)]


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Compile with another backend than inductor, which needs a C compiler."""
    original = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda block, **more: original(block, backend=backend, **more)
    )


def test_compiled_blocks_may_contain_patched_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "aot_eager")
    network = OneBlockUNet()
    before, plain = network.output_and_grads(), state_of(network)
    cache = build_factor_cache(
        network, [module for module in network.modules() if isinstance(module, LoraLinear)]
    )
    unet_patcher = UNetPatcher(network)
    unet_patcher.compile()
    torch._dynamo.utils.counters.clear()
    with unet_patcher.patched():
        for _ in range(2):
            cache.refresh()
            assert_same(network.output_and_grads(), before)
        cache.clear()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert state_of(network) == plain


def test_blocks_that_cannot_be_compiled_are_patched_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler here")

    use_backend(monkeypatch, broken)
    network = OneBlockUNet()
    before, plain = network.output_and_grads(), state_of(network)
    unet_patcher = UNetPatcher(network)
    unet_patcher.compile()
    results: list[list[torch.Tensor]] = []

    def step() -> None:
        with unet_patcher.fallback_to_eager(step), unet_patcher.patched():
            results.append(network.output_and_grads())
            assert type(network.block) is not plain[1][0]

    with pytest.warns(LorasmithWarning, match="could not be compiled.*no compiler here"):
        step()
    step()
    assert len(results) == 2
    for result in results:
        assert_same(result, before)
    assert state_of(network) == plain


# --- steps --------------------------------------------------------------------------------------


def gradients_with_and_without_patches(
    joint_loras: JointLoras, *inputs: LossInput
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return each LoRA's gradients, of the unpatched and the patched network."""
    expected = joint_loras.gradients(*inputs)
    adapters = [adapter for lora in joint_loras.loras for adapter in lora.adapters.values()]
    with accelerated(joint_loras.model.unet, adapters) as fused:
        assert fused > 20
        return expected, joint_loras.gradients(*inputs)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2), (2, 0)])
@pytest.mark.parametrize("task", ["train", "preserve"])
def test_features_that_share_a_pass_get_the_gradients_of_the_unpatched_network(
    joint_loras: JointLoras, sizes: tuple[int, int], task: str
) -> None:
    """Text encoders are trained here too; the first feature has more layers than the second."""
    inputs = [joint_loras.loss_input(number, size) for number, size in enumerate(sizes) if size]
    inputs = [item._replace(batch=replace(item.batch, task=task)) for item in inputs]
    expected, actual = gradients_with_and_without_patches(joint_loras, *inputs)
    for item, other, size in zip(actual, expected, sizes, strict=True):
        torch.testing.assert_close(item, other, atol=1e-6 * float(other.abs().max()), rtol=0)
        assert bool(other.abs().max() > 0) == (size > 0)


def test_frozen_features_and_token_gates_get_the_gradients_of_the_unpatched_network(
    joint_loras: JointLoras,
) -> None:
    first = joint_loras.loras[0].attached.gate
    routing = replace(
        joint_loras.routings[1], frozen=[(first, False)], joint=(), selects_tokens=True
    )
    item = joint_loras.loss_input(1, 3, routing=routing)
    places = torch.zeros(3, 1, item.batch.input_ids.shape[1], dtype=torch.bool)
    places[:2, 0, 1:3] = True
    for named in ([True, False, True], [True] * 3, [False] * 3):
        batch = replace(
            item.batch, has_other_tags=[named], token_mask=places, has_own_tag=[True, True, False]
        )
        expected, actual = gradients_with_and_without_patches(
            joint_loras, item._replace(batch=batch)
        )
        for grad, expected_grad in zip(actual, expected, strict=True):
            torch.testing.assert_close(
                grad, expected_grad, atol=1e-6 * float(expected_grad.abs().max()), rtol=0
            )
        assert float(expected[1].abs().max()) > 0


def test_preservation_starts_with_zero_gradients(joint_loras: JointLoras) -> None:
    """Without an effect of the adapter the preserved prediction does not change."""
    for feature in joint_loras.loras:
        for adapter in feature.adapters.values():
            nn.init.zeros_(adapter.up)
    item = joint_loras.loss_input(0, 2)
    item = item._replace(batch=replace(item.batch, task="preserve"))
    _, gradients = gradients_with_and_without_patches(joint_loras, item)
    assert float(gradients[0].abs().max()) == 0.0


def run_of(model: Path, data: Path, out: Path) -> TrainConfig:
    settings = {
        "data": {"path": data, "tag": "ink", "validation_split": 0.0},
        "output": {"name": str(out / "lora")},
        "model": {"path": model},
        "lora": {"targets": "attention+text-encoder", "rank": 2},
        "train": {
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
            "ema_decay": 0.9,
            "device": "cpu",
        },
        "validation": {"every_n_steps": 0},
        "track": {"tensorboard": False},
    }
    return TrainConfig.model_validate(settings)


def test_patched_run_equals_an_unpatched_run_and_is_restored_after_a_failure(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation, EMA and a text encoder; memory runs out in the last step."""
    data = write(tmp_path / "p", [(64, 64)] * 4)
    results: list[list[torch.Tensor]] = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(unet_patches, "is_available", lambda device: False)
            monkeypatch.setattr(factor_cache, "_is_on_gpu", lambda layer: False)
        with open_trainer(run_of(tiny_model, data, tmp_path / str(kernels)), None) as session:
            plain, steps = state_of(session.model.unet), JointTrainStep([session])
            figures = [steps.step()[0] for _ in range(2)]
            assert state_of(session.model.unet) == plain
            weights = [parameter.detach().clone() for parameter in session.trainable.parameters()]
            results.append([*(part for figure in figures for part in figure[:2]), *weights])
            with monkeypatch.context() as patched:
                patched.setattr(run_step, "compute_losses", out_of_memory)
                with pytest.raises(RuntimeError, match="out of memory"):
                    steps.step()
            assert state_of(session.model.unet) == plain
            for parameter, expected in zip(session.trainable.parameters(), weights, strict=True):
                assert torch.equal(parameter, expected)
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-3)


def out_of_memory(_: Any) -> None:
    raise RuntimeError("CUDA out of memory")
