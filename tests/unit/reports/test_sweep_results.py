"""What a sweep says about its results: the order, and which differences count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import write_run

from lorasmith.config.sweep import SweepConfig, load_sweep
from lorasmith.reports.sweep_page import render_sweep_page, sweep_to_dict, write_sweep_page
from lorasmith.reports.sweep_results import (
    Note,
    group_by_settings,
    make_notes,
    read_sweep_results,
    seed_spread,
    significance_limit,
)
from lorasmith.runs.sweep_paths import SweepPaths


def sweep_of(folder: Path, vary: Mapping[str, Sequence[Any]], **sections: Any) -> SweepConfig:
    tree = {"data": {"path": "p", "tag": "inkmono"}, "output": {"name": str(folder)}}
    return load_sweep(None, vary=vary, base=tree | sections)


def written(folder: Path, run: SweepConfig, lowest: Sequence[float | None]) -> SweepPaths:
    """Leave a run's folder for each variant, with its lowest share of the base's loss."""
    paths = SweepPaths.from_config(run)
    for place, share in zip(paths.loras, lowest, strict=True):
        write_run(place.folder, held_out=() if share is None else (1.0, share, share, share + 0.01))
        place.lora.write_bytes(b"")
    return paths


def notes(folder: Path, vary: Mapping[str, Sequence[Any]], lowest: Sequence[float]) -> list[Note]:
    run = sweep_of(folder, vary)
    return make_notes(run, read_sweep_results(run, written(folder, run, lowest)))


def test_the_best_comes_first(tmp_path: Path) -> None:
    run = sweep_of(tmp_path / "tried", {"lora.rank": [2, 4, 8]})
    results = read_sweep_results(run, written(tmp_path, run, [0.9, 0.7, 0.8]))
    assert [one.name for one in results] == ["rank4", "rank8", "rank2"]
    assert [one.gain for one in results] == pytest.approx([0.3, 0.2, 0.1])
    assert {one.best_step for one in results} == {100}


def test_what_was_given_up_comes_last_and_is_not_compared(tmp_path: Path) -> None:
    run = sweep_of(tmp_path / "tried", {"lora.rank": [2, 4, 8], "train.seed": [0, 1]})
    paths = written(tmp_path, run, [0.9, 0.9, 0.8, 0.8, 0.5, 0.5])
    for place in paths.loras[4:]:
        place.failure.write_text("loss is not finite\n")
    results = read_sweep_results(run, paths)
    assert [one.name[:5] for one in results] == ["rank4"] * 2 + ["rank2"] * 2 + ["rank8"] * 2
    *given_up, note = make_notes(run, results)
    assert [one.text for one in given_up] == ["Loss is not finite."] * 2
    assert note.title == "rank4 is the best"


def test_one_seed_tells_nothing_about_chance(tmp_path: Path) -> None:
    (note,) = notes(tmp_path / "tried", {"lora.rank": [2, 4]}, [0.9, 0.7])
    assert note.title == "How much of the differences is chance is not known"


def test_seeds_alone_are_chance(tmp_path: Path) -> None:
    (note,) = notes(tmp_path / "tried", {"train.seed": [0, 1]}, [0.8, 0.7])
    assert note.title == "Only the seed differs"
    assert "25.0% and varies by 7.07%" in note.text


VARY = {"lora.rank": [2, 4, 8], "train.seed": [0, 1]}


@pytest.mark.parametrize(
    ("lowest", "title"),
    [
        # What a seed does to all alike is no reason to doubt.
        ([0.70, 0.60, 0.80, 0.701, 0.902, 0.80], "rank2 is the best"),
        ([0.700, 0.705, 0.703, 0.701, 0.706, 0.702], "None is certainly better than the others"),
        ([0.700, 0.705, 0.703, 0.701, 0.806, 0.800], "rank4 is among the best"),
    ],
)
def test_differences_are_held_against_the_spread(
    lowest: list[float], title: str, tmp_path: Path
) -> None:
    (note,) = notes(tmp_path / "tried", VARY, lowest)
    assert note.title == title


@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_settings_and_seeds_by_themselves_are_no_spread(
    settings: list[float], seeds: list[float]
) -> None:
    gains = np.array(settings)[:, None] + np.array(seeds)
    assert seed_spread(gains) == pytest.approx(0.0, abs=1e-9)


def test_the_spread_is_that_of_differences() -> None:
    draws = np.random.default_rng(0).standard_normal((400, 60)) * 0.1
    assert seed_spread(draws) == pytest.approx(0.1 * 2**0.5, rel=0.02)
    two = draws[:2]
    assert seed_spread(two) == pytest.approx((two[0] - two[1]).std(ddof=1))
    assert significance_limit(0.1, 2) == pytest.approx(0.1 * 2**0.5)
    assert significance_limit(0.1, 16) == 0.1


def test_only_settings_with_all_seeds_are_compared(tmp_path: Path) -> None:
    run = sweep_of(tmp_path / "tried", VARY)
    paths = written(tmp_path, run, [0.9, 0.8, 0.7, 0.6, 0.5, None])
    known = [one for one in read_sweep_results(run, paths) if one.gain is not None]
    names, gains, left_out = group_by_settings(known)
    assert (names, left_out) == (["rank4", "rank2"], ["rank8"])
    assert make_notes(run, known)[0].text.endswith("Not compared, for want of a seed: rank8.")
    assert gains == pytest.approx(np.array([[0.3, 0.4], [0.1, 0.2]]))
    (note,) = make_notes(
        run, [one for one in known if one.name not in ("rank2-seed1", "rank4-seed1")]
    )
    assert note.text.startswith("No settings were trained with several seeds")


def test_without_held_out_pictures_there_is_no_order(tmp_path: Path) -> None:
    run = sweep_of(tmp_path / "tried", {"train.loss.min_snr_gamma": [0, 5]})
    results = read_sweep_results(run, written(tmp_path, run, [None, None]))
    assert [one.name for one in results] == ["snr0", "snr5"]
    unranked, losses = make_notes(run, results)
    assert unranked.title == "The LoRAs are not ranked"
    assert "No pictures were kept out" in unranked.text
    assert losses.title == "Training losses are not to be compared"
    assert sweep_to_dict(run, results)["ranked_by"] is None
    page = render_sweep_page(run, results)
    assert "All, in no order" in page
    assert "held-out gain" not in page


def test_the_page_stands_by_itself(tmp_path: Path) -> None:
    """One is given up, one was never begun, and more than there are colours."""
    run = sweep_of(tmp_path / "tried", {"train.seed": range(11)}, data={
        "path": "p", "tag": "<b>ink</b>"
    })  # fmt: skip
    paths = SweepPaths.from_config(run)
    for number, place in enumerate(paths.loras[:-1]):
        write_run(place.folder, held_out=(1.0, 0.9 - 0.01 * number, 0.8, 0.8), finished=number > 0)
    paths.loras[0].failure.write_text("loss <i> is not finite\n")
    page = write_sweep_page(run, paths).read_text()
    assert "<b>ink" not in page
    assert "<i>" not in page
    assert "seed0 was given up" in page
    assert "seed10: not begun" in page
    assert "The first 8 have colours" in page
    assert 'class="line eighth"' in page
    assert 'class="line faint"' in page
    assert "http" not in page.replace("http-equiv", "")
    assert "step 0" in page
