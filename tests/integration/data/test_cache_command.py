"""``lorasmith cache``: what it lists and removes of the entries that training leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.training.train_commands import last_error, train
from lorasmith.cli import run


def cache_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["cache", "--json", *arguments]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_training_leaves_entries_that_can_be_removed(
    tiny_model: Path, pictures: Path, tmp_path: Path, cache_in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cache_json(capsys)["entries"] == 0
    assert train(tiny_model, pictures, f"{tmp_path}/ink", "--steps", "1") == 0
    tree = cache_json(capsys)
    assert tree["folder"] == str(cache_in_tmp)
    assert {kind: kind_info["entries"] for kind, kind_info in tree["kinds"].items()} == {
        "latents": 6, "texts": 6,
    }  # fmt: skip
    on_disk = sum(path.stat().st_size for path in cache_in_tmp.rglob("*") if path.is_file())
    assert tree["bytes"] == on_disk > 0
    assert cache_json(capsys, "--prune", "1h")["removed"]["entries"] == 0
    assert cache_json(capsys, "--clear", "--dir", f"{tmp_path}/none")["removed"]["files"] == 0
    assert run(["cache"]) == 0
    assert "12 entries" in capsys.readouterr().out
    assert run(["cache", "--clear"]) == 0
    printed = capsys.readouterr().out
    assert "removed 12 entries" in printed
    assert "0 entries, 0.0 MiB" in printed
    assert not [path for path in cache_in_tmp.rglob("*") if path.is_file()]


@pytest.mark.parametrize("age", ["30", "0d", "-3d", "1y", "d"])
def test_age_has_a_unit(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", f"--prune={age}"]) == 1
    assert f"--prune {age}: write an age in hours, days or weeks" in last_error(capsys)


def test_clear_removes_a_single_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "--prune", "3d", "--clear"]) == 1
    assert "drop one of them" in last_error(capsys)
