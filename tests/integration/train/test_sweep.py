"""``lorasmith sweep``: several LoRAs at the same time, each as `train` would make it by itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorasmith
from helpers.tensors import assert_same
from helpers.training.feature_runs import write_pictures
from helpers.training.train_commands import ctrl_c_at, last_error, log_lines, sets
from lorasmith.cli import run
from lorasmith.core.errors import ConfigError
from lorasmith.loops.checkpoint import load_checkpoint

VARY = ["--vary", "lora.rank=2,4", "--vary", "train.seed=0,1", "--max-parallel", "2"]
NAMES = ["rank2-seed0", "rank2-seed1", "rank4-seed0", "rank4-seed1"]
COMMON = (
    "train.batch_size=2",
    "train.device=cpu",
    "train.learning_rate=0.01",
    "train.lr_warmup_steps=0",
    "train.log_every_n_steps=1",
    "train.checkpoint_every_n_steps=2",
    "train.steps=4",
    "validation.every_n_steps=2",
    "validation.num_inference_steps=1",
    "validation.num_images=1",
    "validation.loss_timesteps=2",
    "data.validation_split=0.2",
    "track.tensorboard=false",
    "lora.targets=attention",
)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, beside which all tests of sweeps write."""
    root = tmp_path_factory.mktemp("sweeps")
    write_pictures(root / "pictures", "curlyqx", 0)
    return root


def command(scene: Path, model: Path, name: str, *more: str) -> list[str]:
    arguments = ["--data", str(scene / "pictures"), "--tag", "curlyqx", "-m", str(model)]
    return [*arguments, "--out", str(scene / name), *sets(*COMMON), *more]


@pytest.fixture(scope="session")
def swept(scene: Path, tiny_model: Path) -> Path:
    assert run(["sweep", *command(scene, tiny_model, "swept", *VARY)]) == 0
    return scene / "swept"


def read_sweep(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return tree


def test_every_variant_leaves_what_a_run_leaves(swept: Path) -> None:
    assert sorted(p.stem for p in swept.glob("*.safetensors")) == NAMES
    for name in NAMES:
        for file in ("run.toml", "log.jsonl", "summary.json", "report.html"):
            assert (swept / name / file).is_file()
        steps = sorted(p.name for p in (swept / name / "previews").glob("step-*"))
        assert steps == ["step-000000", "step-000002", "step-000004"]
        assert (swept / name / f"{name}-best.safetensors").is_file()
        assert all("validation_loss" in line for line in log_lines(swept / name)[::2])
    base = [(swept / name / "previews/step-000000/0000.png").read_bytes() for name in NAMES]
    last = [(swept / name / "previews/step-000004/0000.png").read_bytes() for name in NAMES]
    assert len(set(base)) == 1
    assert len(set(last)) == 4


def test_results_are_side_by_side(swept: Path) -> None:
    tree = read_sweep(swept)
    gains = [variant["gain"] for variant in tree["variants"]]
    assert tree["ranked_by"] == "gain"
    assert gains == sorted(gains, reverse=True)
    assert {variant["name"]: variant["settings"] for variant in tree["variants"]} == {
        name: {"lora.rank": int(name[4]), "train.seed": int(name[-1])} for name in NAMES
    }
    for variant in tree["variants"]:
        log = [line for line in log_lines(swept / variant["name"]) if "validation_loss" in line]
        assert variant["gain"] == pytest.approx(
            max(1 - line["validation_loss"] / line["validation_loss_base"] for line in log)
        )
        assert variant["file"] == f"{variant['name']}.safetensors"
        assert (variant["steps"], variant["state"]) == (4, "all steps done")
    # Whatever the training seed, they are measured on the same noise.
    assert len({log_lines(swept / name)[0]["validation_loss_base"] for name in NAMES}) == 1
    page = (swept / "sweep.html").read_text()
    assert all(f'href="{name}/report.html"' in page for name in NAMES)
    assert page.count("<polyline") == 8
    assert page.count("<img") == 5
    assert tree["notes"][0].partition(":")[0] in page


@pytest.mark.parametrize("name", [NAMES[1], NAMES[2]])
def test_each_variant_equals_a_separate_run(
    name: str, scene: Path, swept: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Up to rounding: Adam turns the rounding error of a zero gradient into a full step."""
    out = tmp_path / "alone"
    overrides = sets(
        f"lora.rank={name[4]}",
        f"train.seed={name[-1]}",
        "validation.loss_seed=0",
        "validation.num_images=1",
        f"output.name={out}",
        "validation.prompts=[]",
    )
    assert run(["train", *command(scene, tiny_model, "unused"), *overrides]) == 0
    separate = load_file(f"{out}.safetensors")
    swept_tensors = load_file(swept / f"{name}.safetensors")
    assert separate.keys() == swept_tensors.keys()
    differences = torch.cat(
        [((swept_tensors[k] - v).abs().float() > 5e-4).flatten() for k, v in separate.items()]
    )
    assert float(differences.float().mean()) < 0.02
    assert max(float(v.abs().max()) for k, v in swept_tensors.items() if "lora_up" in k) > 5e-3
    for a, b in zip(log_lines(swept / name), log_lines(out), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-6)


@pytest.mark.slow
def test_sweep_resumes_exactly(
    scene: Path, swept: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", *command(scene, tiny_model, "halted", *VARY)]
    with ctrl_c_at(11):  # each step has two; this is in the second group's second step
        assert run(arguments) == 130
    halted = scene / "halted"
    assert f"go on with: lorasmith sweep {halted}/run.toml --resume" in capsys.readouterr().err
    assert sorted(p.stem for p in halted.glob("*.safetensors")) == NAMES[:2]
    first = (halted / f"{NAMES[0]}.safetensors").stat()
    assert run([*arguments, "--max-parallel", "4", "--resume"]) == 1
    assert "vary: the sweep was started with other values" in last_error(capsys)
    assert run(["sweep", str(halted / "run.toml"), "--resume"]) == 0
    assert (halted / f"{NAMES[0]}.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    for name in NAMES:
        files = (folder / f"{name}.safetensors" for folder in (swept, halted))
        assert_same(*(load_file(file) for file in files))
        assert log_lines(swept / name) == log_lines(halted / name)
    for group in ("group1", "group2"):
        states = [
            load_checkpoint(folder / group / "checkpoints" / "step-00000004").tensors
            for folder in (swept, halted)
        ]
        assert_same(*states)
    assert [variant["name"] for variant in read_sweep(halted)["variants"]] == [
        variant["name"] for variant in read_sweep(swept)["variants"]
    ]


def test_ctrl_c_in_the_last_step_of_a_group_stops_before_the_next(
    scene: Path, swept: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scene / "between"
    with ctrl_c_at(8):  # each of four steps moves two optimizers
        assert run(["sweep", *command(scene, tiny_model, "between", *VARY)]) == 130
    resume = f"lorasmith sweep {out}/run.toml --resume"
    message = f"stopped after group 1 of 2, all saved; go on with: {resume}"
    assert message in capsys.readouterr().err
    assert sorted(p.stem for p in out.glob("*.safetensors")) == NAMES[:2]
    assert run(["sweep", str(out / "run.toml"), "--resume"]) == 0
    for name in NAMES:
        assert_same(*(load_file(folder / f"{name}.safetensors") for folder in (swept, out)))


def test_ctrl_c_in_the_very_last_step_of_a_sweep_ends_it_as_usual(
    scene: Path, tiny_model: Path
) -> None:
    vary = ["--vary", "train.seed=0,1", "--set", "train.steps=1"]
    with ctrl_c_at(2):
        assert run(["sweep", *command(scene, tiny_model, "complete", *vary)]) == 0
    assert len(list((scene / "complete").glob("*.safetensors"))) == 2


def test_report_command_writes_all_pages(swept: Path) -> None:
    pages = {swept / "sweep.html", *(swept / name / "report.html" for name in NAMES)}
    before = {page: page.read_text() for page in pages}
    for page in pages:
        page.unlink()
    assert run(["report", str(swept)]) == 0
    assert before == {page: page.read_text() for page in pages}


def test_failed_variant_does_not_stop_the_others(
    scene: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(scene, tiny_model, "wild", "--vary", "train.learning_rate=0.01,1e30")
    assert run(["sweep", *arguments]) == 0
    caught = capsys.readouterr()
    assert "warning: lr1e30: loss or gradient is not finite at step 2" in caught.err
    assert "lr1e30 was given up" in caught.out
    finished, failed = read_sweep(scene / "wild")["variants"]
    assert (finished["file"], finished["steps"]) == ("lr0.01.safetensors", 4)
    assert failed["file"] is None
    assert failed["state"].startswith("given up: loss or gradient is not finite at step 2")
    assert run(["sweep", "--out", str(scene / "wild"), "--resume"]) == 0


def test_sweep_from_python_without_validation_images(scene: Path, tiny_model: Path) -> None:
    """Text encoders in one variant only, dropout in both, no validation images."""
    settings = {
        "data": {"path": scene / "pictures", "tag": "curlyqx"},
        "model": {"path": tiny_model},
        "output": {"name": str(scene / "python")},
        "lora": {"dropout": 0.1, "rank": 2},
        "validation": {"every_n_steps": 0},
        "track": {"tensorboard": False},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu"},
    }
    vary = {"lora.targets": ["attention", ("cross-attention", "text-encoder")]}
    results = lorasmith.sweep(settings, vary)
    assert [result.name for result in results] == ["attention", "cross-attention+text-enc"]
    assert [result.gain for result in results] == [None, None]
    assert results[1].settings == {"lora.targets": ("cross-attention", "text-encoder")}
    for result, text in zip(results, (False, True), strict=True):
        assert result.file is not None
        assert any("lora_te" in key for key in load_file(result.file)) == text
    assert read_sweep(scene / "python")["ranked_by"] is None
    assert "nothing was measured" in read_sweep(scene / "python")["notes"][0]
    with pytest.raises(ConfigError, match="not int"):
        lorasmith.sweep(7)  # type: ignore[arg-type]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to vary: name at least one setting"),
        (["--vary", "train.steps=3,4"], "what may vary is lora.rank, lora.alpha"),
        (["--vary", "lora.targets=attention,attn9"], "variant attn9: lora.targets"),
        (
            ["--vary", "lora.targets=attention,attn9", "--max-parallel", "1"],
            "variant attn9: lora.targ",
        ),
        (["--vary", "lora.rank=2,4", "--set", "data.tag=blobqz"], "contains the tag 'blobqz'"),
        (["--vary", "lora.rank=2,4", "--resume"], "--resume: there is no run"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    scene: Path,
    tiny_model: Path,
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "wrong"
    assert run(["sweep", *command(scene, tiny_model, "wrong", *more), "--out", str(out)]) == 1
    assert message in last_error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(
    scene: Path, swept: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {p: p.stat().st_mtime_ns for p in swept.rglob("*")}
    assert run(["sweep", *command(scene, tiny_model, "swept", *VARY)]) == 1
    assert "already holds a run; go on with lorasmith sweep" in last_error(capsys)
    among = ["--vary", "lora.rank=2,4", "--out", str(scene / "pictures" / "x")]
    assert run(["sweep", *command(scene, tiny_model, "swept", *among)]) == 1
    assert "among the pictures" in last_error(capsys)
    single = scene / "plain"
    single.mkdir()
    (single / "run.toml").write_text("")
    assert run(["sweep", *command(scene, tiny_model, "plain", *VARY), "--resume"]) == 1
    assert "holds no sweep to go on with" in last_error(capsys)
    (scene / "features.toml").write_text('[[feature]]\ntag = "a"\ndata = "b"\n')
    assert run(["sweep", str(scene / "features.toml"), *VARY]) == 1
    assert "[[feature]] tables, which cannot be swept" in last_error(capsys)
    assert files == {p: p.stat().st_mtime_ns for p in swept.rglob("*")}
