from pathlib import Path

import pytest

from lorasmith.config.data import PretrainDataConfig
from lorasmith.config.pretrain import StageConfig
from lorasmith.data.reading.row import Row, hash_row
from lorasmith.pretraining.common import chosen_rows, manifest_of, mirror_allowed, read_manifest
from lorasmith.pretraining.unet import stage_of


def row(tmp_path: Path, key: str, *captions: str, **columns: object) -> Row:
    file = tmp_path / "bytes"
    file.write_bytes(b"picture")
    return Row(key, captions or ("x",), columns, file)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    rows = [row(tmp_path, key) for key in ("a/b.png", "with space", "ünal\u2028\x85x")]
    (tmp_path / "m.tsv").write_text(manifest_of(rows), encoding="utf-8")
    found = read_manifest(tmp_path / "m.tsv")
    assert found == {r.key: hash_row(r) for r in rows}
    assert all(len(digest) == 64 for digest in found.values())


def test_words_and_filters_speak_against_mirroring(tmp_path: Path) -> None:
    rows = [
        row(tmp_path, "1", "an apple"),
        row(tmp_path, "2", "an arrow", "arrow pointing LEFT, noto style"),
        row(tmp_path, "3", "leftover food"),
        row(tmp_path, "4", "a right,big hand"),
        row(tmp_path, "5", "a flag", group="flags"),
    ]

    def allowed(**more: object) -> list[bool]:
        return mirror_allowed(rows, PretrainDataConfig(path=tmp_path, **more)).tolist()

    assert allowed() == [False] * 5
    assert allowed(flip_aug=True) == [True, False, True, False, True]
    assert allowed(flip_aug=True, no_flip_words=["food"]) == [True, True, False, True, True]
    flags = {"column": "group", "op": "!=", "value": "flags", "missing": "keep"}
    assert allowed(flip_aug=True, flip_filters=[flags]) == [True, False, True, False, False]


def test_rows_are_filtered_split_and_limited(tmp_path: Path) -> None:
    lines = []
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(b"x")
        role = "base" if number % 2 else "holdout"
        lines.append(f'{{"file_name": "{number}.png", "text": "x", "role": "{role}"}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    base = {"column": "role", "value": "base"}
    training, validation = chosen_rows(
        PretrainDataConfig(path=tmp_path, filters=[base], validation_split=0.3)
    )
    assert len(training) + len(validation) == 30
    assert 0 < len(validation) < 17
    assert {r.columns["role"] for r in training + validation} == {"base"}
    few, same = chosen_rows(
        PretrainDataConfig(path=tmp_path, filters=[base], validation_split=0.3, max_images=4)
    )
    assert (few, same) == (training[:4], validation)


def test_stages_follow_one_another() -> None:
    stages = [
        StageConfig(resolution=side, steps=steps) for side, steps in ((64, 3), (128, 2), (128, 2))
    ]
    places = [stage_of(stages, step) for step in range(7)]
    assert [within for _, within in places] == [0, 1, 2, 0, 1, 0, 1]
    assert [stages.index(stage) for stage, _ in places][:4] == [0, 0, 0, 1]
    assert places[5][0] is stages[2]
    with pytest.raises(IndexError):
        stage_of(stages, 7)
