"""Trainings and images are those that were recorded; see `record.py`."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import golden_runs as golden
import numpy as np
import pytest
from golden_settings import DRAWN, RUNS

from lorasmith.cli import run
from lorasmith.inference.pipeline import Pipeline

Tiny = Callable[[str], Path]


@pytest.fixture(scope="session")
def open_pipeline(tiny_of: Tiny, loras: Path) -> Callable[[str], Pipeline]:
    """Pipelines by family; each is opened once."""
    pipelines: dict[str, Pipeline] = {}

    def of(family: str) -> Pipeline:
        if family not in pipelines:
            pipelines[family] = golden.open_model(tiny_of(family) if family else None, loras)
        return pipelines[family]

    return of


@pytest.mark.parametrize("name", RUNS)
def test_training_result_is_unchanged(name: str, golden_folder: Path, tiny_of: Tiny) -> None:
    if RUNS[name].needs:
        pytest.importorskip(RUNS[name].needs)
    golden.train(name, tiny_of)
    tensors, words = golden.result(name)
    expected, expected_words = golden.stored(name)
    golden.assert_same(tensors, expected)
    if golden.bit_for_bit():  # the hash of the base model
        assert words == expected_words


@pytest.mark.parametrize(("name", "stop"), [("everything", 3), ("staged", 4), ("joint", 3)])
def test_resumed_training_equals_uninterrupted_training(
    name: str, stop: int, golden_folder: Path, tiny_of: Tiny
) -> None:
    file = golden.write_settings(name, tiny_of(RUNS[name].family), "loras/golden")
    with golden.stopped_at(stop):
        assert run([golden.command_of(name), str(file)]) == 130
    assert run([golden.command_of(name), str(file), "--resume"]) == 0
    golden.assert_same(golden.result(name)[0], golden.stored(name)[0])


@pytest.mark.parametrize("name", DRAWN)
def test_generated_image_is_unchanged(name: str, open_pipeline: Callable[[str], Pipeline]) -> None:
    drawn = golden.draw(open_pipeline(DRAWN[name].family), name)
    golden.assert_same_pixels(drawn, golden.pixels(golden.EXPECTED / f"{name}.png"))


def test_closed_gate_leaves_the_image_of_the_base_model(
    open_pipeline: Callable[[str], Pipeline],
) -> None:
    pipe = open_pipeline("sd1")
    plain = golden.draw_prompt(pipe, "a person, sea")
    for gated in ("gated", "token", "token-end"):
        drawn = golden.draw_prompt(pipe, f"a person, sea <lora:{gated}:1>")
        golden.assert_same_pixels(drawn, plain)


def test_recorded_images_differ_from_each_other() -> None:
    """An option that changes no image would not be covered by the golden images."""
    pictures = {name: golden.pixels(golden.EXPECTED / f"{name}.png").astype(int) for name in DRAWN}
    alike = [
        (first, second)
        for first, second in combinations(pictures, 2)
        if pictures[first].shape == pictures[second].shape
        and np.abs(pictures[first] - pictures[second]).max() <= golden.STEPS_OF_GREY
        and {first, second} != {"lora", "open-gate"}
    ]
    assert alike == []
