"""What varies in a sweep: how it is written, what may, and what the combinations are called."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.config.fields import list_fields
from lorasmith.config.reading.load import dump_toml
from lorasmith.config.sweep import (
    SWEEPABLE,
    SweepConfig,
    format_number,
    load_sweep,
    parse_vary,
    variant_names,
)
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

BASE: dict[str, Any] = {"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}}


def swept(*vary: str, **more: Any) -> SweepConfig:
    return load_sweep(None, vary=parse_vary(vary), base={**BASE, **more})


def test_values_multiply_and_the_last_setting_varies_fastest() -> None:
    run = swept("train.learning_rate=1e-4,2e-4", "lora.rank=8,16", "train.seed=0,1")
    variants = run.variants()
    assert [variant.name for variant in variants[:3]] == [
        "lr1e-4-rank8-seed0", "lr1e-4-rank8-seed1", "lr1e-4-rank16-seed0",
    ]  # fmt: skip
    last = variants[-1]
    assert (last.config.train.learning_rate, last.config.lora.rank, last.config.train.seed) == (
        2e-4,
        16,
        1,
    )
    assert last.config.output.name == "n/lr2e-4-rank16-seed1"
    assert last.settings == {"train.learning_rate": 2e-4, "lora.rank": 16, "train.seed": 1}
    assert len(variants) == 8


def test_all_variants_measure_validation_images_with_the_same_noise() -> None:
    runs = [variant.config for variant in swept("train.seed=3,4", train={"seed": 7}).variants()]
    assert [run.validation.loss_seed for run in runs] == [7, 7]
    runs = [
        variant.config for variant in swept("train.seed=3,4", preview={"loss_seed": 5}).variants()
    ]
    assert [run.validation.loss_seed for run in runs] == [5, 5]


def test_saved_sweep_is_read_back(tmp_path: Path) -> None:
    run = swept('lora.targets=["*.attn2.to_k"],ff', "train.lr_warmup_steps=0,0.1", max_parallel=3)
    file = tmp_path / "run.toml"
    file.write_text(dump_toml(run))
    loaded = load_sweep(file)
    assert [(v.name, v.settings, v.config) for v in loaded.variants()] == [
        (v.name, v.settings, v.config) for v in run.variants()
    ]
    assert loaded.max_parallel == 3


def test_options_stand_over_a_file_that_nests(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[data]\npath = "p"\ntag = "t"\n[output]\nname = "n"\n[vary]\ntrain.seed = [0, 1]\n'
        "lora.rank = [2, 4]\n"
    )
    assert load_sweep(file).variants()[0].name == "seed0-rank2"
    run = load_sweep(file, ["train.steps=5"], {"lora.rank": [8, 16]}, max_parallel=1)
    assert [variant.name for variant in run.variants()][:2] == ["seed0-rank8", "seed0-rank16"]
    assert run.variants()[0].config.train.steps == 5
    assert len(run.groups()) == 4


@given(seeds=st.integers(2, 30), max_parallel=st.integers(1, 12))
def test_groups_are_nearly_equal_and_have_all(seeds: int, max_parallel: int) -> None:
    run = load_sweep(None, vary={"train.seed": range(seeds)}, max_parallel=max_parallel, base=BASE)
    groups = run.groups()
    sizes = [len(group) for group in groups]
    assert max(sizes) <= max_parallel
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == -(-seeds // max_parallel)
    assert [variant for group in groups for variant in group] == run.variants()


def test_values_are_read_as_overrides_are() -> None:
    assert parse_vary(["a.b=1,x y,'c,d',[1, 2],true,1e-4"]) == {
        "a.b": [1, "x y", "c,d", [1, 2], True, 1e-4]
    }


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ((), "nothing to vary: name at least one setting with its values"),
        (("lora.rank",), "write it as section.key=value,value"),
        (("lora.rank=",), "write it as section.key=value,value"),
        (("lora.rank=8",), "vary lora.rank: 8 alone is nothing to vary"),
        (("lora.rank=8,16,8",), "vary lora.rank: the value 8 is there twice"),
        (("train.learning_rate=1e-4,0.0001",), "the value 0.0001 is there twice"),
        (("lora.rank=8,16", "lora.rank=4,2"), "--vary lora.rank: it is there twice"),
        (("lora.rnak=8,16",), "no setting 'lora.rnak'; did you mean lora.rank"),
        (("train.optimiser=a,b",), "no setting 'train.optimiser'; did you mean train.optimizer"),
        (("train.lr=1e-4,2e-4", "train.learning_rate=1,2"), "train.learning_rate is there twice"),
        (("epochs=1,2",), "epochs: epochs are not supported"),
        (("lora.rank=8,-1",), "vary lora.rank=-1: lora.rank: input should be greater than 0"),
        (("lora.rank=8,big",), r"vary lora.rank=big: .*\(got 'big'\)"),
        (("lora.gate=prompt,token", "preserve.strength=0,1"),
         "vary lora.gate=token, preserve.strength=1.*: preserve.strength has nothing to do"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_with_a_reason(vary: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        swept(*vary)


@pytest.mark.parametrize(
    "name",
    ["data.path", "data.resolution", "model.path", "output.name", "train.steps", "train.optimizer",
     "train.batch_size", "train.mixed_precision", "validation.every_n_steps", "track.wandb",
     "lora.overrides"],
)  # fmt: skip
def test_settings_that_must_be_equal_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is the same for all.*train.learning_rate"):
        swept(f"{name}=1,2")


def test_all_that_may_vary_are_settings() -> None:
    assert set(SWEEPABLE) <= {name for name, _, _ in list_fields(TrainConfig)}


def test_patterns_make_readable_names() -> None:
    run = swept('lora.targets=["*.attn2.to_k","*.attn2.to_v"],attention+ff@up,up_blocks.1.*')
    assert [variant.name for variant in run.variants()] == [
        "attn2.to_k+attn2.to_v", "attention+ff-up", "up_blocks.1",
    ]  # fmt: skip


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_short_numbers_are_exact(value: float) -> None:
    assert float(format_number(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (0.00015, "1.5e-4"), (0.05, "0.05"), (0.005, "5e-3"), (5.0, "5"), (8, "8"),
     (0, "0"), (1000000, "1e6"), (0.5, "0.5")],
)  # fmt: skip
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=6, unique=True))
def test_names_of_any_text_are_safe_and_differ(targets: list[str]) -> None:
    names = variant_names([{"lora.targets": target, "train.seed": 1} for target in targets])
    assert len({name.casefold() for name in names}) == len(targets)
    for name in names:
        assert not set(name) & set('/\\:*?"<>| \n\0')
        assert not name.startswith(".")


@pytest.mark.parametrize("name", ["lr", "train.lr", "unet_lr", "learning_rate"])
def test_names_of_other_programs_may_vary(name: str) -> None:
    assert swept(f"{name}=1e-4,2e-4").vary == {"train.learning_rate": [1e-4, 2e-4]}
