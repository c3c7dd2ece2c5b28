"""The results of a sweep: their order, and which differences are significant."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.reports.run_folders import write_run
from lorasmith.config.sweep import SweepConfig, load_sweep
from lorasmith.reports.advice import Advice
from lorasmith.reports.pages.sweep import render_sweep_page, sweep_to_dict, write_sweep_page
from lorasmith.reports.sweep_results import (
    group_by_settings,
    make_notes,
    read_sweep_results,
    seed_spread,
    significance_limit,
)
from lorasmith.runs.sweep_paths import SweepPaths


def make_sweep(folder: Path, vary: Mapping[str, Sequence[Any]], **sections: Any) -> SweepConfig:
    tree = {"data": {"path": "p", "tag": "inkmono"}, "output": {"name": str(folder)}}
    return load_sweep(None, vary=vary, base=tree | sections)


def write_runs(config: SweepConfig, lowest: Sequence[float | None]) -> SweepPaths:
    """Write a config's folder for each variant with its lowest relative validation loss."""
    paths = SweepPaths.from_config(config)
    for lora, share in zip(paths.loras, lowest, strict=True):
        write_run(lora.folder, held_out=() if share is None else (1.0, share, share, share + 0.01))
        lora.lora.write_bytes(b"")
    return paths


def notes(folder: Path, vary: Mapping[str, Sequence[Any]], lowest: Sequence[float]) -> list[Advice]:
    config = make_sweep(folder, vary)
    return make_notes(config, read_sweep_results(config, write_runs(config, lowest)))


def test_best_variant_comes_first(tmp_path: Path) -> None:
    config = make_sweep(tmp_path / "tried", {"lora.rank": [2, 4, 8]})
    results = read_sweep_results(config, write_runs(config, [0.9, 0.7, 0.8]))
    assert [result.name for result in results] == ["rank4", "rank8", "rank2"]
    assert [result.gain for result in results] == pytest.approx([0.3, 0.2, 0.1])
    assert {result.best_step for result in results} == {100}


def test_failed_runs_come_last_and_are_not_compared(tmp_path: Path) -> None:
    config = make_sweep(tmp_path / "tried", {"lora.rank": [2, 4, 8], "train.seed": [0, 1]})
    paths = write_runs(config, [0.9, 0.9, 0.8, 0.8, 0.5, 0.5])
    for lora in paths.loras[4:]:
        lora.failure.write_text("loss is not finite\n")
    results = read_sweep_results(config, paths)
    assert [result.name[:5] for result in results] == ["rank4"] * 2 + ["rank2"] * 2 + ["rank8"] * 2
    *failed, note = make_notes(config, results)
    assert [note.evidence for note in failed] == ["Loss is not finite."] * 2
    assert note.title == "rank4 is the best"


def test_single_seed_leaves_chance_unknown(tmp_path: Path) -> None:
    (note,) = notes(tmp_path / "tried", {"lora.rank": [2, 4]}, [0.9, 0.7])
    assert note.title == "It is not known how much of the differences is chance"


def test_differences_between_seeds_are_chance(tmp_path: Path) -> None:
    (note,) = notes(tmp_path / "tried", {"train.seed": [0, 1]}, [0.8, 0.7])
    assert note.title == "Only the seed differs"
    assert "25.0% and varies by 7.07%" in note.evidence


VARY = {"lora.rank": [2, 4, 8], "train.seed": [0, 1]}


@pytest.mark.parametrize(
    ("lowest", "title"),
    [
        # A difference that a seed makes for all settings does not count.
        ([0.70, 0.60, 0.80, 0.701, 0.902, 0.80], "rank2 is the best"),
        (
            [0.700, 0.705, 0.703, 0.701, 0.706, 0.702],
            "No settings are certainly better than the others",
        ),
        ([0.700, 0.705, 0.703, 0.701, 0.806, 0.800], "rank4 is among the best"),
    ],
)
def test_differences_are_compared_with_the_seed_spread(
    lowest: list[float], title: str, tmp_path: Path
) -> None:
    (note,) = notes(tmp_path / "tried", VARY, lowest)
    assert note.title == title


@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_additive_effects_of_settings_and_seeds_are_no_spread(
    settings: list[float], seeds: list[float]
) -> None:
    gains = np.array(settings)[:, None] + np.array(seeds)
    assert seed_spread(gains) == pytest.approx(0.0, abs=1e-9)


def test_spread_is_that_of_differences() -> None:
    values = np.random.default_rng(0).standard_normal((400, 60)) * 0.1
    assert seed_spread(values) == pytest.approx(0.1 * 2**0.5, rel=0.02)
    two = values[:2]
    assert seed_spread(two) == pytest.approx((two[0] - two[1]).std(ddof=1))
    assert significance_limit(0.1, 2) == pytest.approx(0.1 * 2**0.5)
    assert significance_limit(0.1, 16) == 0.1


def test_only_settings_with_all_seeds_are_compared(tmp_path: Path) -> None:
    config = make_sweep(tmp_path / "tried", VARY)
    paths = write_runs(config, [0.9, 0.8, 0.7, 0.6, 0.5, None])
    known = [result for result in read_sweep_results(config, paths) if result.gain is not None]
    names, gains, incomplete = group_by_settings(known)
    assert (names, incomplete) == (["rank4", "rank2"], ["rank8"])
    assert make_notes(config, known)[0].evidence.endswith(
        "Not compared, as a seed is missing: rank8."
    )
    assert gains == pytest.approx(np.array([[0.3, 0.4], [0.1, 0.2]]))
    (note,) = make_notes(
        config, [result for result in known if result.name not in ("rank2-seed1", "rank4-seed1")]
    )
    assert note.evidence.startswith("No settings were trained with several seeds")


def test_results_without_validation_are_not_ranked(tmp_path: Path) -> None:
    config = make_sweep(tmp_path / "tried", {"train.loss.min_snr_gamma": [0, 5]})
    results = read_sweep_results(config, write_runs(config, [None, None]))
    assert [result.name for result in results] == ["snr0", "snr5"]
    unranked, losses = make_notes(config, results)
    assert unranked.title == "The LoRAs are not ranked"
    assert "There were no validation images" in unranked.evidence
    assert losses.title == "Training losses cannot be compared"
    assert sweep_to_dict(config, results)["ranked_by"] is None
    page = render_sweep_page(config, results, "tried")
    assert "All, not ranked" in page
    assert "validation gain" not in page


def test_page_is_escaped_and_self_contained(tmp_path: Path) -> None:
    """One variant failed, one was never started, and there are more variants than colors."""
    config = make_sweep(tmp_path / "tried", {"train.seed": range(11)}, data={
        "path": "p", "tag": "<b>ink</b>"
    })  # fmt: skip
    paths = SweepPaths.from_config(config)
    for i, lora in enumerate(paths.loras[:-1]):
        write_run(lora.folder, held_out=(1.0, 0.9 - 0.01 * i, 0.8, 0.8), finished=i > 0)
    paths.loras[0].failure.write_text("loss <i> is not finite\n")
    page = write_sweep_page(config, paths).read_text()
    assert "<b>ink" not in page
    assert "<i>" not in page
    assert "seed0 was given up" in page
    assert "seed10: not begun" in page
    assert "The first 8 have colors" in page
    assert 'class="line eighth"' in page
    assert 'class="line faint"' in page
    assert "http" not in page.replace("http-equiv", "")
    assert "step 0" in page
