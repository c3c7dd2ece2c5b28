"""Patches replace classes and attributes for a while, and only on tested versions of diffusers."""

import pytest
import torch
from torch import nn

from lorasmith.core.errors import LorasmithWarning
from lorasmith.training.acceleration import module_patch
from lorasmith.training.acceleration.attention import attention_patch
from lorasmith.training.acceleration.feed_forward import feed_forward_patch, geglu_patch
from lorasmith.training.acceleration.module_patch import (
    TESTED_DIFFUSERS,
    ModulePatch,
    patched,
    supported_patches,
)
from lorasmith.training.acceleration.resnets import resnet_patches
from lorasmith.training.acceleration.transformer_block import transformer_block_patch


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(input)


def all_patches() -> list[ModulePatch]:
    blocks = [transformer_block_patch(), feed_forward_patch(), *resnet_patches(nn.Module())]
    return [attention_patch(), geglu_patch(), *blocks]


@pytest.fixture
def untested_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_patch, "diffusers_version", lambda: "99.1.0.dev0")
    module_patch._warn_untested.cache_clear()


def test_modules_that_match_are_replaced_for_the_block() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), Doubled(2, 2))
    patch = ModulePatch(nn.Linear, Doubled, lambda layer: layer.out_features == 4)
    x = torch.randn(3, 4)
    before = network[0](x)
    with patched(network, [patch]):
        assert [type(layer) for layer in network] == [Doubled, nn.Linear, Doubled]
        assert torch.equal(network[0](x), 2.0 * before)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Linear, Doubled]
    assert torch.equal(network[0](x), before)


def test_attributes_are_restored_or_removed() -> None:
    layer = nn.Linear(2, 2)
    layer.old = 1
    patch = ModulePatch(nn.Linear, nn.Linear, attributes=lambda _: {"old": 2, "new": 3})
    with patched(layer, [patch]):
        assert (layer.old, layer.new) == (2, 3)
    assert layer.old == 1
    assert not hasattr(layer, "new")


def test_errors_in_the_block_leave_nothing_patched() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="in the block"), patched(layer, [_doubling()]):
        raise ValueError("in the block")
    assert type(layer) is nn.Linear


def test_errors_while_patching_leave_nothing_patched() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))

    def attributes(layer: nn.Linear) -> dict[str, int]:
        if layer.out_features == 3:
            raise ValueError("no attributes")
        return {"extra": 1}

    patch = ModulePatch(nn.Linear, Doubled, attributes=attributes)
    with pytest.raises(ValueError, match="no attributes"), patched(network, [patch]):
        pass
    assert [type(layer) for layer in network] == [nn.Linear, nn.Linear]
    assert not hasattr(network[0], "extra")


def test_nested_blocks_change_nothing_more() -> None:
    layer = nn.Linear(2, 2)
    with patched(layer, [_doubling()]):
        with patched(layer, [_doubling()]):
            assert type(layer) is Doubled
        assert type(layer) is Doubled
    assert type(layer) is nn.Linear


def _doubling() -> ModulePatch:
    return ModulePatch(nn.Linear, Doubled)


def test_installed_diffusers_is_tested(recwarn: pytest.WarningsRecorder) -> None:
    patches = all_patches()
    assert supported_patches(patches) == patches
    assert not [warning for warning in recwarn if warning.category is LorasmithWarning]


def test_every_patched_class_of_diffusers_has_a_tested_range() -> None:
    classes = {patch.source for patch in all_patches()}
    names = {kind.__name__ for kind in classes if kind.__module__.startswith("diffusers.")}
    assert names == set(TESTED_DIFFUSERS)


@pytest.mark.usefixtures("untested_diffusers")
def test_untested_diffusers_runs_unpatched_with_one_warning() -> None:
    patches = all_patches()
    with pytest.warns(LorasmithWarning, match=r"not tested with diffusers 99\.1\.0") as warned:
        results = [supported_patches(patches) for _ in range(2)]
    assert len(warned) == 1
    assert "Transformer2DModel" in str(warned[0].message)
    assert {patch.source for patch in results[0]} <= {nn.GroupNorm, nn.SiLU}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.37.1", False), ("0.38.0", True), ("0.42.9", True), ("0.43.0.dev0", False), ("1.0", False)],
)
def test_versions_are_compared_by_major_and_minor(
    version: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_patch, "diffusers_version", lambda: version)
    monkeypatch.setitem(TESTED_DIFFUSERS, "Attention", ((0, 38), (0, 42)))
    assert attention_patch().is_tested is expected
