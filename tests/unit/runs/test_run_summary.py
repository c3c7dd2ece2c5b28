import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorasmith.core.errors import DataError
from lorasmith.runs.summary import RunSummary

SUMMARY = RunSummary(
    name="ink", tag="inkmono", family="sd1", images=22, steps=250, seconds=61.5, parameters=9,
    best_step=200, stop_reason="Ctrl-C",
)  # fmt: skip


def test_summary_survives_writing_and_reading(tmp_path: Path) -> None:
    for summary in (SUMMARY, replace(SUMMARY, best_step=None, name='ü"</script>')):
        summary.write(tmp_path / "summary.json")
        assert RunSummary.read(tmp_path / "summary.json") == summary


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"name": "x"}', '{"nmae": "x"}', "\xff"])
def test_damaged_file_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"summary\.json: not a run summary"):
        RunSummary.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seconds", "NaN"), ("seconds", "Infinity"), ("tag", r'"\ud800"'), ("steps", "1" * 5000)],
    ids=["nan", "infinity", "half a character", "thousands of digits"],
)
def test_impossible_value_is_an_error(tmp_path: Path, key: str, value: str) -> None:
    SUMMARY.write(tmp_path / "summary.json")
    values = json.loads((tmp_path / "summary.json").read_text())
    text = json.dumps(values | {key: "VALUE"})
    (tmp_path / "summary.json").write_text(text.replace('"VALUE"', value))
    with pytest.raises(DataError, match=r"summary\.json: not a run summary"):
        RunSummary.read(tmp_path / "summary.json")


def test_unknown_key_is_an_error(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path / "summary.json")
    values = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(values | {"speed": 3}))
    with pytest.raises(DataError, match="speed"):
        RunSummary.read(tmp_path / "summary.json")


def test_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path / "summary.json")
    values = json.loads((tmp_path / "summary.json").read_text())
    for old, new in (
        ("pictures", "images"), ("held_out", "validation_images"), ("stopped", "stop_reason"),
    ):  # fmt: skip
        values[old] = values.pop(new)
    (tmp_path / "summary.json").write_text(json.dumps(values))
    assert RunSummary.read(tmp_path / "summary.json") == SUMMARY
