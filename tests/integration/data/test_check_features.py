"""``lorasmith check RUN.toml``: the images of several features, each and side by side."""

import json
from pathlib import Path

import pytest

from helpers.training.feature_runs import two_features
from lorasmith.cli import run


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    status = run(["check", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def rules(tree: dict) -> set[str]:
    return {finding["rule"] for finding in tree["findings"]}


def test_check_of_distinct_features_reports_no_overlap(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = two_features(tmp_path, tiny_model)
    status, tree, error = checked(capsys, str(file))
    assert (status, error, rules(tree)) == (0, "", set())
    assert set(tree["features"]) == {"curlyqx", "cookqz"}
    first = tree["features"]["curlyqx"]
    assert first["pictures"] == first["tag"]["captions"] == 5
    assert "".join(first["tokens"]) == "curlyqx</w>"
    assert "tag-company" not in rules(first)  # the class word may stand everywhere
    assert run(["check", str(file)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "kept apart" in text
    assert " ".join(first["tokens"]) in text


def test_feature_overlap_is_reported_and_stops_a_joint_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = two_features(tmp_path, tiny_model, mode="joint")
    (tmp_path / "cook" / "1.txt").write_text("a cookqz and curlyqx person")
    status, tree, error = checked(capsys, str(file), "--set", "data.caption_dropout_rate=0.1")
    assert status == 1
    assert rules(tree) == {"other-tag", "caption-dropout"}
    assert error == f"error: {file}: other-tag; the findings above say what to do\n"
    status, tree, error = checked(capsys, str(file), "--set", "train.mode=staged")
    assert (status, rules(tree)) == (0, {"other-tag"})


def test_tags_that_the_model_knows_are_reported(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = two_features(tmp_path, tiny_model, tags=("the", "theqz"))
    _, tree, _ = checked(capsys, str(file))
    assert rules(tree) == {"tag-ordinary", "tag-prefix"}
    _, tree, _ = checked(capsys, str(two_features(tmp_path, tiny_model, tags=("qx1", "qx12"))))
    assert rules(tree) == {"tag-prefix"}


def test_run_of_one_feature_is_checked_too(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'[data]\npath = "{pictures}"\ntag = "inkmono"\n[output]\nname = "x"\n'
        f'[model]\npath = "{tiny_model}"\n'
    )
    status, tree, _ = checked(capsys, str(file))
    assert (status, tree["tag"]["captions"], tree["resolution"]) == (0, 6, 64)
    assert run(["check", str(file), "--tag", "x"]) == 1
    assert "RUN.toml says what they are" in capsys.readouterr().err
    assert run(["check", str(tmp_path / "none.toml")]) == 1
    assert "no such settings file" in capsys.readouterr().err
