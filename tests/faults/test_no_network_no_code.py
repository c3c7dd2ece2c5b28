"""No command that reads files can be made to use the network, a program, a pickle or other code.

The files name code wherever a library could look for some; a guard refuses what that would take.
"""

import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from guarded_commands import PROBES
from PIL import Image

from lorasmith.cli import run

GUARD = Path(__file__).with_name("guarded_commands.py")
EXCEPTIONS = {
    "--download": ("socket.", "fetches a model by its id: asked for, and files only"),
}
"""Options with which a command does more: the beginning of the events, and the reason."""

CODE = {
    "auto_map": {"AutoModel": "evil_module.Model", "AutoTokenizer": ["evil_module.T", None]},
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "evil_module"},
    "custom_pipelines": {"pipeline": "evil_module"},
}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def poison(folder: Path, trace: Path) -> None:
    """Let every JSON file of a folder name code, and put pickles and modules beside the weights."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name.endswith("index.json") or "model" in content:
            continue
        content |= CODE | ({"tokenizer_class": "evil_module.T"} if "pad_token" in content else {})
        for part in ("text_config", "vision_config"):
            if part in content:
                content[part] |= CODE
        file.write_text(json.dumps(content), encoding="utf-8")
    for weights in list(folder.rglob("*.safetensors")):
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt"):
            (weights.parent / name).write_bytes(pickle.dumps(Payload(trace)))
        adapter = {"base_model_name_or_path": "evil/model", "peft_type": "LORA"}
        (weights.parent / "adapter_config.json").write_text(json.dumps(adapter))
        write_module(weights.parent / "evil_module.py", trace)


def write_module(path: Path, trace: Path) -> None:
    """Write a module that leaves a trace when it is imported."""
    path.write_text(f"import os\nos.mkdir({str(trace)!r})\n", encoding="utf-8")


def make_judge(folder: Path, tiny_model: Path) -> Path:
    """Write a small CLIP in transformers' layout."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    shutil.copytree(tiny_model / "tokenizer", folder)
    tokens = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    text = {"vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config={**small, **text}, vision_config=vision)).save_pretrained(
        folder
    )
    return folder


def make_data(folder: Path) -> Path:
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"evil_module, a drawing of {number} pears")
    return folder


def run_guarded(steps: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Run steps in a process with the guard; modules of `folder` can be imported."""
    plan, report = folder / "plan.json", folder / "report.json"
    plan.write_text(json.dumps(steps))
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, str(GUARD), str(plan), str(report)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sys.stderr.write(done.stderr)
    results: list[dict[str, Any]] = json.loads(report.read_text())
    for result, step in zip(results, steps, strict=True):
        result["step"] = step
    return results


def test_guard_refuses_what_it_is_for(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_module(tmp_path / "evil_module.py", trace)
    results = run_guarded(list(PROBES), tmp_path)
    assert [result["status"] for result in results] == [1] * len(PROBES)
    assert all(result["refused"] for result in results)
    assert not trace.exists()


def test_commands_use_no_network_program_pickle_or_code_of_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    model = shutil.copytree(tiny_model, tmp_path / "evil_model")
    judge = make_judge(tmp_path / "evil_judge", tiny_model)
    for folder in (model, judge):
        poison(folder, trace)
    write_module(tmp_path / "evil_module.py", trace)
    data = make_data(tmp_path / "data")
    quick = [
        "train.device=cpu", "track.tensorboard=false",
        "validation.every_n_steps=2", "validation.num_inference_steps=1",
        "validation.num_images=1", "validation.loss_timesteps=1",
    ]  # fmt: skip
    settings = [part for setting in quick for part in ("--set", setting)]
    lora, m = f"{tmp_path}/loras/pears.safetensors", ["-m", str(model)]
    steps = [
        ["check", str(data), "--tag", "evil_module"],
        ["train", "--data", str(data), "--tag", "evil_module", "--out", f"{tmp_path}/loras/pears",
         "--steps", "2", *m, *settings],
        ["model", "info", str(model)],
        ["model", "convert", str(model), f"{tmp_path}/single.safetensors"],
        ["model", "info", f"{tmp_path}/single.safetensors"],
        ["model", "convert", f"{tmp_path}/single.safetensors", f"{tmp_path}/folder"],
        ["lora", "info", lora],
        ["lora", "convert", lora, f"{tmp_path}/converted.safetensors", "--to", "diffusers"],
        ["lora", "merge", lora, lora, "--out", f"{tmp_path}/merged.safetensors"],
        ["generate", "evil_module <lora:pears:1>", *m, "--lora-dir", f"{tmp_path}/loras",
         "--steps", "1", "--out", f"{tmp_path}/out", "--device", "cpu"],
        ["evaluate", lora, *m, "--data", str(data), "--feature-extractor", str(judge),
         "--seeds", "2", "--steps", "1", "--size", "64x64", "--device", "cpu",
         "--out", f"{tmp_path}/evaluation"],
        ["report", f"{tmp_path}/loras/pears"],
    ]  # fmt: skip
    pickled = tmp_path / "pickled.safetensors"
    for path in (pickled, pickled.with_suffix(".ckpt")):
        path.write_bytes(pickle.dumps(Payload(trace)))
    impossible = [
        *([*command, str(path)] for path in (pickled, pickled.with_suffix(".ckpt"))
          for command in (["model", "info"], ["lora", "info"], ["generate", "pears", "-m"])),
        *(["train", "--data", str(data), "--tag", "evil_module", *m, *settings, "--out", "x",
           "--set", f"{name}=evil_module.Item"]
          for name in ("train.optimizer", "train.lr_scheduler", "train.loss.weighting")),
        ["generate", "pears", *m, "--sampler", "evil_module.Sampler"],
        ["model", "info", "evil/model"],
    ]  # fmt: skip
    results = run_guarded([*steps, *impossible], tmp_path)
    statuses = [result["status"] for result in results]
    assert statuses == [0] * len(steps) + [1] * len(impossible)
    assert not [(result["step"], result["refused"]) for result in results if result["refused"]]
    assert not trace.exists()


def test_network_is_asked_with_the_option_for_it_only(tmp_path: Path) -> None:
    steps = [["model", "info", "evil/model", option] for option in EXCEPTIONS]
    for result, (events, _) in zip(run_guarded(steps, tmp_path), EXCEPTIONS.values(), strict=True):
        assert result["status"] == 1
        assert result["refused"]
        assert all(event.startswith(events) for event, _ in result["refused"])


def test_commands_find_no_package_that_fetches_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels.py").write_text("def get_kernel(name, version): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    assert run(["--version"]) == 0
    with pytest.raises(ImportError):
        importlib.import_module("kernels")
