"""Training extended from outside: callbacks, loss functions and training methods."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lorasmith
from helpers.tensors import assert_same
from helpers.training.train_commands import (
    VALIDATION,
    checkpoint_tensors,
    during_step,
    press_ctrl_c,
    sets,
    train,
)
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.cli import run
from lorasmith.config.lora import LoraConfig
from lorasmith.config.optimization import TrainerConfig
from lorasmith.loops.optimization.optimizers import ParamGroup
from lorasmith.models.model import Model
from lorasmith.registries import TRAINING_METHODS
from lorasmith.training.methods import ExportMetadata, MethodPlan
from lorasmith.training.state import TrainerState
from lorasmith.training.step.train_step import StepMetrics


def settings_of(model: Path, images: Path, out: Path, **train: Any) -> dict[str, Any]:
    return {
        "data": {"path": images, "tag": "inkmono"},
        "output": {"name": str(out)},
        "model": {"path": model},
        "train": {"steps": 4, "batch_size": 2, "device": "cpu", **train},
        "validation": {"every_n_steps": 0},
        "track": {"tensorboard": False},
    }


# --- callbacks --------------------------------------------------------------------------------


class Recorder(lorasmith.Callback):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.losses: list[float] = []
        self.stop_reason = ""
        self.paths: list[str] = []
        self.validation_keys: list[set[str]] = []

    def on_train_begin(self, state: TrainerState) -> None:
        self.calls.append(("begin", state.step))

    def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
        self.calls.append(("step", state.step))
        self.losses.append(float(metrics.loss))
        assert 1 <= metrics.images <= 2  # an epoch's last batch is smaller

    def on_validation_end(self, state: TrainerState, metrics: Mapping[str, float]) -> None:
        self.calls.append(("validation", state.step))
        self.validation_keys.append(set(metrics))

    def on_checkpoint(self, state: TrainerState, path: Path) -> None:
        self.calls.append(("checkpoint", state.step))
        assert (path / "manifest.json").is_file()

    def on_save(self, state: TrainerState, path: Path) -> None:
        self.calls.append(("save", state.step))
        self.paths.append(path.name)
        assert path.is_file()

    def on_train_end(self, state: TrainerState, stop_reason: str) -> None:
        self.calls.append(("end", state.step))
        self.stop_reason = stop_reason


def test_callbacks_are_called_in_the_order_of_events(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = settings_of(
        tiny_model, pictures, tmp_path / "ink", checkpoint_every_n_steps=2, save_every_n_steps=2
    )
    settings["validation"] = {"every_n_steps": 2, "loss_timesteps": 1, "prompts": []}
    settings["data"]["validation_split"] = 0.2
    recorder = Recorder()
    lorasmith.train(settings, callbacks=[recorder])
    assert recorder.calls[:3] == [("validation", 0), ("begin", 0), ("step", 1)]
    events = [name for name, step in recorder.calls if step == 2]
    assert [name for name in events if name != "save"] == ["validation", "checkpoint", "step"]
    assert recorder.calls[-1] == ("end", 4)
    assert recorder.stop_reason == "all steps done"
    assert recorder.paths[-1] == "ink.safetensors"
    assert {"ink-000002.safetensors", "ink-best.safetensors"} <= set(recorder.paths)
    assert recorder.validation_keys[0] == {
        "validation_loss",
        "validation_loss_base",
        "validation_loss_gain",
    }
    assert len(recorder.losses) == 4


def test_callback_can_stop_the_training(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    class StopAtTwo(Recorder):
        def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
            super().on_step_end(state, metrics)
            if state.step == 2:
                state.stop("enough")

    callback = StopAtTwo()
    lora = lorasmith.train(
        settings_of(tiny_model, pictures, tmp_path / "ink"), callbacks=[callback]
    )
    assert lora.is_file()
    assert callback.stop_reason == "enough"
    assert len(callback.losses) == 2


def test_callbacks_of_a_sweep_are_called_for_each_lora(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    names: list[tuple[str, int]] = []

    class Names(lorasmith.Callback):
        def on_step_end(self, state: TrainerState, metrics: StepMetrics) -> None:
            names.append((state.paths.name, state.step))

    settings = settings_of(tiny_model, pictures, tmp_path / "ink", steps=2)
    lorasmith.sweep(settings, {"train.seed": [0, 1]}, callbacks=[Names()])
    assert names == [("seed0", 1), ("seed1", 1), ("seed0", 2), ("seed1", 2)]


# --- loss functions ---------------------------------------------------------------------------


def mse_loss(context: lorasmith.LossContext) -> torch.Tensor:
    return (context.prediction.float() - context.target).square().mean(dim=(1, 2, 3))


def huber_loss(context: lorasmith.LossContext) -> torch.Tensor:
    loss = nn.functional.smooth_l1_loss
    return loss(context.prediction.float(), context.target, reduction="none").mean(dim=(1, 2, 3))


def test_custom_loss_equal_to_the_built_in_one_trains_the_same(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    constant = {"loss": {"weighting": "constant", "masked": False}}
    out = {name: tmp_path / name for name in ("builtin", "mse", "huber")}
    lorasmith.train(settings_of(tiny_model, pictures, out["builtin"], **constant))
    lorasmith.train(settings_of(tiny_model, pictures, out["mse"], **constant), loss_fn=mse_loss)
    lorasmith.train(settings_of(tiny_model, pictures, out["huber"], **constant), loss_fn=huber_loss)
    states = {name: checkpoint_tensors(folder, 4) for name, folder in out.items()}
    assert_same(states["builtin"], states["mse"])
    different = [k for k, v in states["huber"].items() if not torch.equal(v, states["mse"][k])]
    assert different


def test_loss_function_with_the_wrong_shape_is_refused(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(lorasmith.ConfigError, match="return one loss for each image"):
        lorasmith.train(
            settings_of(tiny_model, pictures, tmp_path / "ink"),
            loss_fn=lambda context: mse_loss(context).mean(),
        )


# --- training methods -------------------------------------------------------------------------


class Scales:
    """One trainable factor for the output of each layer."""

    attached = None

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.strength = 1.0
        self.adapters = {name: _Scale() for name in layers}
        self._hooks = [
            layer.register_forward_hook(self._scale_by(self.adapters[name]))
            for name, layer in layers.items()
        ]

    def _scale_by(self, scale: "_Scale") -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * (1.0 + self.strength * scale.value)

        return hook

    def parameters(self) -> list[nn.Parameter]:
        return [scale.value for scale in self.adapters.values()]

    def train(self, mode: bool = True) -> None:
        pass

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class ScalesMethod:
    """Trains a factor for each value projection of the cross-attentions."""

    has_gate = False

    def plan(self, model: Model, lora: LoraConfig, train: TrainerConfig) -> MethodPlan:
        modules = model.unet.named_modules()
        layers = {name: module for name, module in modules if name.endswith("attn2.to_v")}
        return MethodPlan(layers, len(layers))

    def inject(
        self, model: Model, plan: MethodPlan, lora: LoraConfig, seed: int, gate: GateMetadata
    ) -> Scales:
        return Scales(plan.layers)

    def parameter_groups(self, trainable: Scales, train: TrainerConfig) -> list[ParamGroup]:
        return [ParamGroup("scales", trainable.parameters(), train.learning_rate or 1e-3)]

    def export(self, trainable: Scales, path: Path, metadata: ExportMetadata) -> None:
        scales = {name: scale.value.detach() for name, scale in trainable.adapters.items()}
        save_file(scales, path, {"tag": metadata.gate.tag, "step": str(metadata.gate.step)})


@pytest.fixture
def scales_method() -> Iterator[None]:
    TRAINING_METHODS.register("scales", ScalesMethod())
    yield
    TRAINING_METHODS.unregister("scales")


@pytest.mark.usefixtures("scales_method")
def test_registered_training_method_trains_through_the_command_line(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    more = sets(*VALIDATION, "train.method=scales", "train.learning_rate=0.02")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 0
    scales = load_file(tmp_path / "ink.safetensors")
    assert scales
    assert all(name.endswith("attn2.to_v") for name in scales)
    assert max(float(value.abs()) for value in scales.values()) > 1e-3
    assert (tmp_path / "ink" / "previews" / "step-000006" / "0000.png").is_file()
    assert (tmp_path / "ink" / "summary.json").is_file()


@pytest.mark.usefixtures("scales_method")
def test_registered_training_method_resumes_exactly(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    more = sets("train.method=scales", "train.learning_rate=0.02")
    assert train(tiny_model, pictures, f"{tmp_path}/one", *more) == 0
    with during_step(3, press_ctrl_c):
        assert train(tiny_model, pictures, f"{tmp_path}/two", *more) == 130
    assert run(["train", "--out", f"{tmp_path}/two", "--resume"]) == 0
    assert_same(checkpoint_tensors(tmp_path / "one", 6), checkpoint_tensors(tmp_path / "two", 6))
    assert_same(*(load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two")))


def test_unknown_training_method_is_refused_with_the_known_ones(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *sets("train.method=lara")) == 1
    assert "there is no training method 'lara'; did you mean 'lora'?" in capsys.readouterr().err


@pytest.mark.usefixtures("scales_method")
def test_preservation_needs_a_method_with_a_gate(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = sets("train.method=scales", "preserve.strength=1")
    assert train(tiny_model, pictures, f"{tmp_path}/ink", *more) == 1
    assert "preserve: it needs a training method with a gate" in capsys.readouterr().err
