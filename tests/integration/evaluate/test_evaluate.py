"""The commands ``evaluate`` and ``lora ablate`` on a tiny model, with LoRAs as runs leave them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import lorasmith
from helpers.lora_files import make_lora
from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
from lorasmith.cli import run
from lorasmith.inference.options import SamplingOptions
from lorasmith.models.load import load_model

QUICK = ["--steps", "1", "--seeds", "3", "--guidance", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def scene(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of two tags, and LoRA files of a run of each."""
    folder = tmp_path_factory.mktemp("evaluated")
    noise = torch.randint(0, 256, (12, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    model = load_model(tiny_model)
    for number, (tag, gate) in enumerate((("curlyqx", "prompt"), ("cookqz", "none"))):
        pictures = folder / tag
        pictures.mkdir()
        for index in range(6):
            pixels = noise[6 * number + index].numpy().astype("uint8")
            Image.fromarray(pixels).save(pictures / f"{index}.png")
            (pictures / f"{index}.txt").write_text(f"a {tag} person, style {index}")
        save(model, folder / "loras" / f"{tag}.safetensors", tag, gate, number)
    settings = (
        f'[data]\npath = "{folder}/curlyqx"\ntag = "curlyqx"\nclass_word = "person"\n'
        f'validation_split = 0.5\n[output]\nname = "curlyqx"\n[model]\npath = "{tiny_model}"\n'
    )
    run_folder = folder / "loras" / "curlyqx"
    run_folder.mkdir()
    (run_folder / "run.toml").write_text(settings)
    save(model, run_folder / "curlyqx-000004.safetensors", "curlyqx", "prompt", 5, step="4")
    return folder


def save(model: Any, path: Path, tag: str, gate: str, seed: int, step: str = "8") -> None:
    path.parent.mkdir(exist_ok=True)
    make_lora(model, path, {"targets": "attention"}, 0.3, seed + 1)
    file = load_lora_file(path)
    metadata = {"lorasmith.gate": gate, "lorasmith.tag": tag, "lorasmith.step": step}
    save_lora_file(path, file.layers, {**file.metadata, **metadata}, torch.float32)


def test_run_is_evaluated_with_its_best_file(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loras = tmp_path / "loras"
    shutil.copytree(scene / "loras", loras)
    assert run(["evaluate", str(loras / "curlyqx"), "--max-leak", "1e9", *QUICK]) == 0
    captured = capsys.readouterr()
    assert "curlyqx" in captured.out
    results = json.loads((loras / "curlyqx" / "evaluation.json").read_text())
    (result,) = results["features"]
    assert (result["tag"], result["class_word"], result["gate"]) == ("curlyqx", "person", "prompt")
    assert (result["references"], result["held_out"]) == (3, True)
    assert result["gated"]["exact"] is True
    assert result["gated"]["latent"]["ratio"] == 0.0
    assert result["gated"]["latent"]["present"] > 0.0
    assert result["plain"]["exact"] is False
    assert result["plain"]["latent"]["ratio"] > 0.0
    assert result["plain"]["prediction"]["floor"] == 0.0
    assert result["distribution"]["kid"]["low"] < result["distribution"]["kid"]["high"]
    assert result["distribution"]["fid"] is None
    assert (results["gated"], results["plain"], results["pairs"]) == (None, None, [])
    (files,) = results["checkpoints"]
    best = min(files["files"], key=lambda file: file["loss"]["difference"])
    assert [file["step"] for file in files["files"]] == [8, 4]
    assert best["file"] == files["best"] == result["file"]
    assert str(tmp_path) not in json.dumps(results)


@pytest.mark.slow
def test_two_tags_are_evaluated_together(
    scene: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "all"
    for tag in ("curlyqx", "cookqz"):
        shutil.copytree(scene / tag, pictures / f"1_{tag}")
    files = [str(scene / "loras" / f"{tag}.safetensors") for tag in ("curlyqx", "cookqz")]
    out = tmp_path / "out"
    more = ["--data", str(pictures), "--class", "person", "-m", str(tiny_model)]
    assert run(["evaluate", *files, *more, "--out", str(out), *QUICK, "--seeds", "2"]) == 0
    results = json.loads((out / "evaluation.json").read_text())
    first, second = results["features"]
    assert (first["references"], first["held_out"]) == (6, False)
    assert (first["gated"]["exact"], second["gated"]) == (True, None)
    for kind in ("gated", "plain"):
        assert results[kind]["bleeding"]["tags"] == ["curlyqx", "cookqz"]
        assert len(results[kind]["bleeding"]["matrix"]) == 2
    # The ungated file is active for every prompt, the gated one only for its own.
    forgetting = {row["tag"]: row for row in results["gated"]["kept"]}
    assert forgetting["cookqz"]["alone"] == pytest.approx(forgetting["cookqz"]["loaded"], abs=1e-4)
    assert forgetting["curlyqx"]["alone"] != pytest.approx(
        forgetting["curlyqx"]["loaded"], abs=1e-4
    )
    (pair,) = results["pairs"]
    assert (pair["first"], pair["second"]) == ("curlyqx", "cookqz")
    assert pair["interaction"]["prediction"] > 0.0
    page = (out / "evaluation.html").read_text()
    assert page.count("<img ") == 2 * (5 + 2 * 3 + 3 * 3 + 3 * 2)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "curlyqx + cookqz" in page


@pytest.mark.slow
def test_evaluate_in_python_takes_names_and_writes_on_request(
    scene: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    options = SamplingOptions(num_inference_steps=1, guidance_scale=1.0)
    settings: dict[str, Any] = {"options": options, "num_seeds": 2, "device": "cpu"}
    evaluation = lorasmith.evaluate("curlyqx", out=tmp_path / "out", **settings)
    (result,) = evaluation.results.features
    assert (result.tag, result.references, result.held_out) == ("curlyqx", 3, True)
    assert [candidate.step for candidate in evaluation.choices[0].candidates] == [8, 4]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["seeds"] == [0, 1]
    before = sorted(scene.rglob("*"))
    repeated = lorasmith.evaluate(
        ["cookqz"], data=scene / "cookqz", model=tiny_model, class_word="cook", **settings
    )
    assert repeated.results.features[0].class_word == "cook"
    assert sorted(scene.rglob("*")) == before


def test_probe_prints_a_chart_and_writes_a_page(
    scene: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = str(scene / "loras" / "curlyqx.safetensors"), tmp_path / "probe.html"
    arguments = ["lora", "ablate", file, "-m", str(tiny_model), "--device", "cpu"]
    data = ["--data", str(scene / "curlyqx"), "--by", "kind"]
    assert run([*arguments, *data, "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "cross-attention" in printed
    assert "█" in printed
    assert page.read_text().count("<rect ") == 2 * 2
    assert run([*arguments, "--steps", "1", "--json"]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    names = [block["block"] for block in blocks]
    assert names == ["down.0", "down.1", "down.2", "mid", "up.1", "up.2", "up.3"]
    assert all(block["switched_off"] > 0 for block in blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere.safetensors"], "nowhere.safetensors: no such weights file"),
        (["evaluate", "loras"], "loras: not a run's folder"),
        (["evaluate", "loras/cookqz.safetensors"], "name them with --data DIR"),
        (["evaluate", "loras/cookqz.safetensors", "--data", "curlyqx"], "0 pictures with the tag"),
        (
            ["evaluate", "loras/curlyqx", "--feature-extractor", "curlyqx"],
            "not a feature extractor",
        ),
        (["evaluate", "tagless.safetensors"], "no trigger word (tag)"),
        (["lora", "ablate", "tagless.safetensors"], "give a prompt with --prompt"),
    ],
)
def test_mistakes_are_errors_of_one_line(
    arguments: list[str], message: str, scene: Path, tmp_path: Path, tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from lorasmith.models.files import open as model_opening

    monkeypatch.chdir(scene)
    monkeypatch.setattr(model_opening, "EMBEDDED", tiny_model)
    tagless = load_lora_file(scene / "loras" / "curlyqx.safetensors")
    save_lora_file(tmp_path / "tagless.safetensors", tagless.layers, {})
    fixed = [str(tmp_path / "tagless.safetensors") if word == "tagless.safetensors" else word
             for word in arguments]  # fmt: skip
    assert run([*fixed, "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


def test_lora_with_other_tensors_is_measured_where_asked(
    scene: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load_lora_file(scene / "loras" / "cookqz.safetensors")
    path = tmp_path / "more.safetensors"
    tensors = load_file(plain.path) | {"_aux.0a1b": torch.zeros(16)}
    save_file(tensors, path, plain.metadata)
    command = ["evaluate", str(path), "--data", str(scene / "cookqz"), "-m", str(tiny_model)]
    command += [*QUICK, "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run(command) == 1
    assert "_aux.0a1b" in capsys.readouterr().err
    assert run([*command, "--allow-mismatch"]) == 0
    assert "_aux.0a1b" in " ".join(capsys.readouterr().err.split())
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(results["features"]) == 1
