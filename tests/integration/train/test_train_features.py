"""``lorasmith train`` with several features: staged, joint, and both resumed exactly."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.fake_wandb import FakeWandb
from helpers.tensors import assert_same
from helpers.training.feature_runs import two_features, write_pictures
from helpers.training.train_commands import (
    checkpoint_tensors,
    ctrl_c_at,
    last_error,
    log_lines,
    sets,
)
from helpers.two_processes import in_two_processes
from lorasmith.cli import run
from lorasmith.loops.checkpoint import load_checkpoint

TAGS = ("curlyqx", "cookqz")
PRESERVED = "[preserve]\nstrength = 0.5\nevery = 2\ncross = 0.5\n"


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two features, beside which all tests write their runs."""
    root = tmp_path_factory.mktemp("features")
    for number, (folder, tag) in enumerate(zip(("curly", "cook"), TAGS, strict=True)):
        write_pictures(root / folder, tag, number)
    return root


@pytest.fixture(scope="session")
def staged(scene: Path, tiny_model: Path) -> Path:
    file = two_features(scene, tiny_model, name="staged", more=PRESERVED, ema_decay=0.9)
    assert run(["train", str(file)]) == 0
    return scene / "loras"


@pytest.fixture(scope="session")
def joint(scene: Path, tiny_model: Path) -> Path:
    file = two_features(scene, tiny_model, mode="joint", name="joint")
    assert run(["train", str(file)]) == 0
    return scene / "loras"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def files(loras: Path, name: str) -> list[Path]:
    return [loras / f"{name}-{tag}.safetensors" for tag in TAGS]


@pytest.mark.parametrize("mode", ["staged", "joint"])
def test_every_feature_has_a_file_that_knows_its_gate(
    mode: str, request: pytest.FixtureRequest
) -> None:
    loras: Path = request.getfixturevalue(mode)
    metadata_of_files = [metadata(file) for file in files(loras, mode)]
    assert [entry["lorasmith.tag"] for entry in metadata_of_files] == list(TAGS)
    assert [entry["ss_network_dim"] for entry in metadata_of_files] == ["4", "2"]
    for entry in metadata_of_files:
        assert (entry["lorasmith.gate"], entry["lorasmith.class"]) == ("prompt", "person")
        assert entry["lorasmith.step"] == "4"
    assert metadata_of_files[0]["lorasmith.run"] == metadata_of_files[1]["lorasmith.run"] != ""
    for tag in TAGS:
        folder = loras / mode / tag
        assert json.loads((folder / "summary.json").read_text())["tag"] == tag
        assert tag in (folder / "report.html").read_text()
    page = (loras / mode / "report.html").read_text()
    assert all(f'href="{tag}/report.html"' in page for tag in TAGS)


def test_report_command_writes_all_pages(joint: Path, tmp_path: Path) -> None:
    shutil.copytree(joint / "joint", tmp_path / "joint")
    pages = sorted((tmp_path / "joint").rglob("report.html"))
    assert len(pages) == 3
    for page in pages:
        page.unlink()
    assert run(["report", str(tmp_path / "joint")]) == 0
    assert sorted((tmp_path / "joint").rglob("report.html")) == pages


# --- one after another ------------------------------------------------------------------------


def test_first_stage_equals_a_separate_run(
    scene: Path, staged: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Only the first: a later stage sees the features before it."""
    base = ["--tag", TAGS[0], "--out", f"{tmp_path}/one", "-m", str(tiny_model)]
    overrides = sets(
        "train.steps=4",
        "train.batch_size=2",
        "train.device=cpu",
        "train.log_every_n_steps=1",
        "train.learning_rate=0.01",
        "train.lr_warmup_steps=0",
        "train.ema_decay=0.9",
        "lora.rank=4",
        "track.tensorboard=false",
        "validation.every_n_steps=0",
        "data.class_word=person",
        "preserve.strength=0.5",
        "preserve.every_n_steps=2",
        "preserve.earlier_features_strength=0.5",
    )
    assert run(["train", "--data", str(scene / "curly"), *base, *overrides]) == 0
    assert_same(
        checkpoint_tensors(tmp_path / "one", 4), checkpoint_tensors(staged / "staged" / TAGS[0], 4)
    )
    first, second = (log_lines(staged / "staged" / tag) for tag in TAGS)
    assert ["preserve" in line for line in first] == [True, False, True, False]
    assert ["preserve" in line for line in second] == [True, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 6])
def test_staged_run_resumes_exactly(
    scene: Path, staged: Path, tiny_model: Path, moment: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the first or the second stage; refused if the first feature has changed."""
    name = f"stopped{moment}"
    file = two_features(scene, tiny_model, name=name, more=PRESERVED, ema_decay=0.9)
    with ctrl_c_at(moment):
        assert run(["train", str(file)]) == 130
    first = staged / f"{name}-{TAGS[0]}.safetensors"
    assert first.exists() == (moment > 4)
    if first.exists():
        first_bytes = first.read_bytes()
        shutil.copy(staged / f"staged-{TAGS[1]}.safetensors", first)
        assert run(["train", "--out", str(staged / name), "--resume"]) == 1
        assert "trained on top of other files" in last_error(capsys)
        first.write_bytes(first_bytes)
    assert run(["train", "--out", str(staged / name), "--resume"]) == 0
    for file, resumed in zip(files(staged, "staged"), files(staged, name), strict=True):
        assert_same(load_file(file), load_file(resumed))
    for tag in TAGS:
        assert_same(
            checkpoint_tensors(staged / "staged" / tag, 4),
            checkpoint_tensors(staged / name / tag, 4),
        )
        assert log_lines(staged / "staged" / tag) == log_lines(staged / name / tag)
    run_ids = [metadata(file)["lorasmith.run"] for file in files(staged, name)]
    assert run_ids[0] == run_ids[1]


def test_ctrl_c_in_the_last_step_of_a_stage_stops_before_the_next(
    scene: Path, staged: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected_file = two_features(scene, tiny_model, name="between", more=PRESERVED, ema_decay=0.9)
    with ctrl_c_at(4):
        assert run(["train", str(expected_file)]) == 130
    settings = staged / "between" / "run.toml"
    resume = f"lorasmith train {settings} --resume"
    message = f"stopped after feature 'curlyqx', 1 of 2, all saved; go on with: {resume}"
    assert message in capsys.readouterr().err
    assert [path.is_file() for path in files(staged, "between")] == [True, False]
    assert run(["train", str(settings), "--resume"]) == 0
    for expected_file, resumed in zip(
        files(staged, "staged"), files(staged, "between"), strict=True
    ):
        assert_same(load_file(expected_file), load_file(resumed))


# --- all at once ------------------------------------------------------------------------------


def test_each_feature_of_a_joint_run_equals_a_separate_run(
    scene: Path, joint: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Up to rounding: Adam turns the rounding error of a zero gradient into a full step."""
    packed = load_checkpoint(joint / "joint" / "checkpoints" / "step-00000004").tensors
    for tag, folder, rank in zip(TAGS, ("curly", "cook"), (4, 2), strict=True):
        out = tmp_path / tag
        settings = sets(
            "train.batch_size=2",
            "train.device=cpu",
            "train.learning_rate=0.01",
            "train.lr_warmup_steps=0",
            "train.log_every_n_steps=1",
            "validation.every_n_steps=0",
            "track.tensorboard=false",
            f"lora.rank={rank}",
        )
        assert (
            run(
                [
                    "train",
                    "--data",
                    str(scene / folder),
                    "--tag",
                    tag,
                    "--out",
                    str(out),
                    "-m",
                    str(tiny_model),
                    "--steps",
                    "4",
                    *settings,
                ]
            )
            == 0
        )
        separate = {k: v for k, v in checkpoint_tensors(out, 4).items() if k.startswith("module/")}
        joint_tensors = {k: packed[f"joint-{tag}/{k}"] for k in separate}
        differences = torch.cat(
            [((joint_tensors[k] - separate[k]).abs() > 5e-4).flatten() for k in separate]
        )
        assert float(differences.float().mean()) < 0.02
        assert (
            max(float(value.abs().max()) for k, value in joint_tensors.items() if "up" in k) > 5e-3
        )
        for a, b in zip(log_lines(joint / "joint" / tag), log_lines(out), strict=True):
            assert a == pytest.approx(b, rel=5e-3)


def test_joint_run_resumes_exactly(
    scene: Path, joint: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected_file = two_features(scene, tiny_model, mode="joint", name="halted")
    for number in (2, 3):  # in the first step, then in the second one after that
        with ctrl_c_at(number):
            assert run(["train", str(expected_file), *(["--resume"] if number == 3 else [])]) == 130
    assert run(["train", str(joint / "halted" / "run.toml"), "--resume"]) == 0
    states = [
        load_checkpoint(joint / name / "checkpoints" / "step-00000004").tensors
        for name in ("joint", "halted")
    ]
    assert run(["train", str(expected_file), "--resume", "--set", "train.mode=staged"]) == 1
    assert "started with 'joint' and cannot go on with 'staged'" in last_error(capsys)
    renamed = {key.replace("halted", "joint"): value for key, value in states[1].items()}
    assert_same(states[0], renamed)
    for expected_file, resumed in zip(files(joint, "joint"), files(joint, "halted"), strict=True):
        assert_same(load_file(expected_file), load_file(resumed))
    for tag in TAGS:
        assert log_lines(joint / "joint" / tag) == log_lines(joint / "halted" / tag)


def halted(file: str, out: str) -> int:
    """Stop at the second step and resume; return 0 if both succeed."""
    with ctrl_c_at(3):  # each step has two features
        if run(["train", file, "--out", out, "--set", "train.batch_size=1"]) != 130:
            return 1
    return run(["train", "--out", out, "--resume"])


@pytest.mark.slow
def test_joint_run_in_two_processes_equals_a_single_process(
    scene: Path, joint: Path, tiny_model: Path
) -> None:
    """One image for each process, or one and none; stopped and resumed in both processes."""
    file = two_features(scene, tiny_model, mode="joint", name="joint")
    assert in_two_processes(halted, str(file), str(joint / "shared")) == [0, 0]
    single, distributed = (
        load_checkpoint(joint / name / "checkpoints" / "step-00000004")
        for name in ("joint", "shared")
    )
    renamed = {k.replace("shared", "joint"): v for k, v in distributed.tensors.items()}
    assert renamed.keys() == single.tensors.keys()
    weights = [key for key in renamed if "/module/" in key]
    differences = torch.cat(
        [((renamed[k] - single.tensors[k]).abs() > 5e-4).flatten() for k in weights]
    )
    assert float(differences.float().mean()) < 0.02
    for tag in TAGS:
        assert f"joint-{tag}" in {key.split("/")[0] for key in weights}
        lines = [log_lines(joint / name / tag) for name in ("joint", "shared")]
        for a, b in zip(*lines, strict=True):
            assert a == pytest.approx(b, rel=5e-3)
    assert all(file.is_file() for file in files(joint, "shared"))


def test_features_of_a_joint_run_share_a_wandb_run(
    scene: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    file = two_features(scene, tiny_model, mode="joint", name="told", steps=3)
    arguments = ["train", str(file), *sets("track.wandb=true")]
    with ctrl_c_at(3):
        assert run(arguments) == 130
    assert run([*arguments, "--resume"]) == 0
    kinds = [call[0] for call in fake.calls]
    assert kinds == ["init", *["log"] * 4, "finish", "init", *["log"] * 2, "finish"]
    opened = [call[1] for call in fake.calls if call[0] == "init"]
    assert opened[0] == opened[1]
    assert opened[0]["name"] == "told"
    assert set(opened[0]["config"]) == set(TAGS)
    assert str(scene) not in json.dumps(opened[0]["config"])
    logged = [call[1:] for call in fake.calls if call[0] == "log"]
    assert [step for _, step in logged] == [1, 1, 2, 2, 3, 3]
    for (figures, step), tag in zip(logged, TAGS * 3, strict=True):
        metrics = log_lines(scene / "loras" / "told" / tag)[step - 1]
        assert figures[f"{tag}/loss"] == metrics["loss"]
        assert all(name.startswith(f"{tag}/") for name in figures)


@pytest.mark.parametrize("mode", [pytest.param("staged", marks=pytest.mark.slow), "joint"])
def test_run_with_all_options_is_trained(tiny_model: Path, mode: str, tmp_path: Path) -> None:
    """Previews, a text encoder, a token gate, a long caption in one feature only, uneven parts."""
    file = two_features(
        tmp_path,
        tiny_model,
        mode=mode,
        name=f"all-{mode}",
        steps=2,
        batch_size=1,
        gradient_accumulation_steps=3,
        gradient_checkpointing="true",
    )
    caption = tmp_path / "curly" / "1.txt"
    caption.write_text(f"{caption.read_text()}, {'a ' * 90}, curlyqx")
    extra = 'rank = 2\ntargets = "cross-attention+text-encoder"\ngate = "token+end"'
    text = file.read_text()
    # In the first stage, so that the second has a frozen text encoder's adapters under it.
    file.write_text(text.replace('class_word = "person"', f'class_word = "person"\n{extra}', 1))
    validation = sets(
        "validation.every_n_steps=2",
        "validation.num_inference_steps=1",
        "validation.num_images=1",
        "data.validation_split=0.2",
    )
    assert run(["train", str(file), *validation]) == 0
    for tag in TAGS:
        folder = tmp_path / "loras" / f"all-{mode}" / tag
        assert any("validation_loss" in line for line in log_lines(folder))
        assert (folder / "previews" / "step-000002" / "0000.png").is_file()
    written = files(tmp_path / "loras", f"all-{mode}")
    gates = [metadata(path)["lorasmith.gate"] for path in written]
    assert gates == ["token+end", "prompt"]
    assert [any("lora_te_" in key for key in load_file(path)) for path in written] == [True, False]


# --- what is refused --------------------------------------------------------------------------


def refused(
    capsys: pytest.CaptureFixture[str], file: Path, *more: str, edit: tuple[str, str] = ("", "")
) -> str:
    if edit[0]:
        assert edit[0] in file.read_text()
        file.write_text(file.read_text().replace(*edit))
    capsys.readouterr()
    assert run(["train", str(file), *more]) == 1
    return last_error(capsys)


def test_name_that_is_taken_is_refused(
    scene: Path, joint: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in joint.rglob("*") if p.is_file() and "joint" in str(p)}
    file = two_features(scene, tiny_model, mode="joint", name="joint")
    assert "already holds a run; go on with" in refused(capsys, file)
    assert "holds no run to resume" in refused(
        capsys, file, "--resume", "--set", f"output.name={scene}/loras/none"
    )
    single = [
        "train",
        "--data",
        str(scene / "curly"),
        "--tag",
        TAGS[0],
        "--out",
        str(joint / "joint"),
        "-m",
        str(tiny_model),
    ]
    assert run(single) == 1
    assert "choose another --out" in last_error(capsys)
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("mode", ["staged", "joint"])
def test_mistakes_are_reported_before_anything_is_written(
    scene: Path, tiny_model: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def settings(name: str = "wrong") -> Path:
        return two_features(scene, tiny_model, mode=mode, name=name)

    message = refused(capsys, settings(), edit=("rank = 2", 'rank = 2\ntargets = "attn9"'))
    assert "feature 'cookqz': lora.targets" in message
    (tmp_path / "empty").mkdir()
    message = refused(capsys, settings(), edit=(f"{scene}/cook", f"{tmp_path}/empty"))
    assert f"{tmp_path}/empty" in message
    assert "no images" in message
    message = refused(capsys, settings(), edit=('tag = "cookqz"', 'tag = "kookqz"'))
    assert "captions contains the tag 'kookqz'" in message
    message = refused(capsys, settings(), edit=('tag = "cookqz"', 'tag = "curlyqx"'))
    assert "the tag 'curlyqx' is there twice" in message
    message = refused(capsys, settings(), edit=('tag = "cookqz"', 'tag = "a curlyqx look"'))
    assert "the tag 'curlyqx' stands inside the tag 'a curlyqx look'" in message
    signs = two_features(tmp_path, tiny_model, mode=mode, tags=("qx", "qx++"))
    assert "the tag 'qx' stands inside the tag 'qx++'" in refused(capsys, signs)
    assert not (tmp_path / "loras" / "both").exists()
    message = refused(capsys, settings(), "--data", "x")
    assert "--data: the settings have [[feature]] tables" in message
    message = refused(capsys, settings(), "--out", str(scene / "cook" / "lora"))
    assert "among the pictures" in message
    assert not list((scene / "loras").glob("wrong*"))


def test_captions_with_both_tags_stop_a_joint_run(
    scene: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(scene / "cook", mixed)
    (mixed / "1.txt").write_text("a cookqz and curlyqx person")
    file = two_features(scene, tiny_model, mode="joint", name="mixed")
    message = refused(capsys, file, edit=(f"{scene}/cook", str(mixed)))
    assert "1 caption has the tag 'curlyqx' besides 'cookqz'" in message
    assert "(first 1.png)" in message
