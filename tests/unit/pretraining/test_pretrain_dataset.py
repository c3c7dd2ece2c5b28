from pathlib import Path

import pytest

from helpers.manifests import read_manifest
from lorasmith.config.data import PretrainDataConfig
from lorasmith.config.pretrain import StageConfig
from lorasmith.data.reading.row import Row, hash_row
from lorasmith.pretraining.dataset import (
    find_flippable,
    format_manifest,
    select_rows,
)
from lorasmith.pretraining.unet import find_stage


def make_row(tmp_path: Path, key: str, *captions: str, **columns: object) -> Row:
    file = tmp_path / "bytes"
    file.write_bytes(b"picture")
    return Row(key, captions or ("x",), columns, file)


def test_manifest_is_read_back(tmp_path: Path) -> None:
    rows = [make_row(tmp_path, key) for key in ("a/b.png", "with space", "ünal\u2028\x85x")]
    (tmp_path / "m.tsv").write_text(format_manifest(rows), encoding="utf-8")
    manifest = read_manifest(tmp_path / "m.tsv")
    assert manifest == {row.key: hash_row(row) for row in rows}
    assert all(len(digest) == 64 for digest in manifest.values())


def test_words_and_filters_prevent_flipping(tmp_path: Path) -> None:
    rows = [
        make_row(tmp_path, "1", "an apple"),
        make_row(tmp_path, "2", "an arrow", "arrow pointing LEFT, noto style"),
        make_row(tmp_path, "3", "leftover food"),
        make_row(tmp_path, "4", "a right,big hand"),
        make_row(tmp_path, "5", "a flag", group="flags"),
    ]

    def flippable(**options: object) -> list[bool]:
        return find_flippable(rows, PretrainDataConfig(path=tmp_path, **options)).tolist()

    assert flippable() == [False] * 5
    assert flippable(flip_aug=True) == [True, False, True, False, True]
    assert flippable(flip_aug=True, no_flip_words=["food"]) == [True, True, False, True, True]
    flags = {"column": "group", "op": "!=", "value": "flags", "missing": "keep"}
    assert flippable(flip_aug=True, flip_filters=[flags]) == [True, False, True, False, False]


def test_rows_are_filtered_split_and_limited(tmp_path: Path) -> None:
    lines = []
    for index in range(60):
        (tmp_path / f"{index}.png").write_bytes(b"x")
        role = "base" if index % 2 else "holdout"
        lines.append(f'{{"file_name": "{index}.png", "text": "x", "role": "{role}"}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    base = {"column": "role", "value": "base"}
    training, validation = select_rows(
        PretrainDataConfig(path=tmp_path, filters=[base], validation_split=0.3)
    )
    assert len(training) + len(validation) == 30
    assert 0 < len(validation) < 17
    assert {r.columns["role"] for r in training + validation} == {"base"}
    training_rows, validation_rows = select_rows(
        PretrainDataConfig(path=tmp_path, filters=[base], validation_split=0.3, max_images=4)
    )
    assert (training_rows, validation_rows) == (training[:4], validation)


def test_stages_follow_each_other() -> None:
    stages = [
        StageConfig(resolution=side, steps=steps) for side, steps in ((64, 3), (128, 2), (128, 2))
    ]
    stages_of_steps = [find_stage(stages, step) for step in range(7)]
    assert [stage_step for _, stage_step in stages_of_steps] == [0, 1, 2, 0, 1, 0, 1]
    assert [stages.index(stage) for stage, _ in stages_of_steps][:4] == [0, 0, 0, 1]
    assert stages_of_steps[5][0] is stages[2]
    with pytest.raises(IndexError):
        find_stage(stages, 7)
