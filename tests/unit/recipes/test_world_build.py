import os
import subprocess
import sys

import numpy as np
import pytest
import sheet
from inputs import VALIDATION_SHARE, read_credits, read_emoji, read_inputs
from pack import read_pack
from people.attributes import HOLDOUTS, NEVER_DRAWN
from photographs import find_photographs
from PIL import Image
from rows import COUNTS, list_jobs, make_row

from helpers.paths import EMBEDDED_RECIPE, REPOSITORY
from helpers.world_samples import make_pack_row, write_inputs
from lorasmith.data.reading.filters import hash_fraction


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    rows = [make_pack_row(f"ball {index}", ("red", "blue")[index % 2]) for index in range(80)]
    rows += [make_pack_row("cactus", "green", role="holdout")]
    rows += [make_pack_row("flag", "green", group="flags")]
    return write_inputs(tmp_path_factory.mktemp("world"), rows)


@pytest.fixture(scope="module")
def inputs(files):
    return read_inputs(*files)


def run_build(files, out, *options):
    command = [sys.executable, str(EMBEDDED_RECIPE / "world" / "build.py"), "--emoji"]
    command += [str(files[0]), "--photographs", str(files[1]), "--out", str(out), *options]
    source = {"PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.run(
        command, env={**os.environ, **source}, capture_output=True, text=True, check=False
    )


def test_compositions_show_no_holdouts_validation_rows_or_signs(files):
    rows, images = read_pack(files[0])
    data = {row["icon"]: image for row, image in zip(rows, images, strict=True)}
    validation = {
        row["icon"]
        for row in rows
        if hash_fraction(f"{row['style']}/{row['icon']}") < VALIDATION_SHARE
    }
    assert validation - {"cactus", "flag"}
    expected = set(data) - validation - {"cactus", "flag"}
    captions = {emoji.caption.split(",")[0].split(" ", 2)[2] for emoji in read_emoji(files[0])}
    assert captions == expected


def test_jobs_have_all_kinds_and_no_holdout_that_is_never_drawn():
    jobs = list_jobs(1.0)
    kinds = [kind for kind, _ in jobs]
    assert {kind: kinds.count(kind) for kind in COUNTS} == COUNTS
    assert set(kinds) - set(COUNTS) == {f"people-{name}" for name in HOLDOUTS} - {
        f"people-{NEVER_DRAWN}"
    }


@pytest.mark.parametrize("kind", [*COUNTS, "people-green-braids"])
def test_job_gives_the_same_row_each_time(inputs, kind):
    row, image = make_row(inputs, (kind, 5))
    assert (row, image) == make_row(inputs, (kind, 5))
    assert image != make_row(inputs, (kind, 6))[1]
    assert row["captions"][0] == row["caption"]
    assert row["licence"]


def test_holdout_rows_are_marked(inputs):
    row, _ = make_row(inputs, ("people-green-braids", 0))
    assert (row["role"], row["holdout"]) == ("holdout", "green-braids")
    assert {"green hair", "braids", "amber eyes"} <= set(row["caption"].split(", "))
    assert make_row(inputs, ("people", 0))[0]["role"] == "base"


def test_nobody_vanishes_on_white(inputs):
    for index in range(60):
        tags = set(make_row(inputs, ("people", index))[0]["caption"].split(", "))
        if {"white hair", "lab coat"} & tags and {"flat color", "shaded"} & tags:
            assert "white background" not in tags


def test_build_gives_the_same_file_in_one_and_two_processes(files, tmp_path):
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.tar"
        done = run_build(files, out, "--share", "0.001", "--processes", processes)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    rows, images = read_pack(tmp_path / "1.tar")
    emoji, _ = read_pack(files[0])
    assert [row["icon"] for row in rows[: len(emoji)]] == [row["icon"] for row in emoji]
    assert len(rows) == len(images) == len(emoji) + len(list_jobs(0.001))
    credits = read_credits(*files)
    assert credits == "credits of the emoji\n\ncredits of the photographs\n"


def test_photographs_without_credits_are_refused(files, tmp_path):
    (tmp_path / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match="write who took the photographs"):
        read_credits(files[0], tmp_path)


def test_folders_without_large_photographs_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match="no photographs in its folders"):
        find_photographs(tmp_path)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (300, 100)).save(tmp_path / "dog" / "0.png")
    (tmp_path / "ATTRIBUTION.txt").write_text("me\n")
    done = run_build((files[0], tmp_path), tmp_path / "out.tar")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("fewer than 128 pixels on a side; remove it")
    assert not (tmp_path / "out.tar").exists()


def test_sheet_has_a_picture_of_each_kind(files, tmp_path, monkeypatch):
    arguments = ["--emoji", str(files[0]), "--photographs", str(files[1]), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sheet.py", *arguments, "--columns", "2", "--rows", "2"])
    sheet.main()
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {kind for kind, _ in list_jobs(0.0)}
    with Image.open(tmp_path / "texture.png") as image:
        pixels = np.asarray(image)
    side, label = 128, pixels[128:140]
    assert pixels[:side, :side].std() > 5
    assert label.min() < 128  # words
