"""Models that are not whole, do not fit together, or were made to do harm: one line, at once."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.dataset_files import write_image
from lorasmith.cli.app import run
from lorasmith.core.errors import WeightsError
from lorasmith.models.files.known_configs import KNOWN_KEYS
from lorasmith.models.files.open import EMBEDDED, open_source
from lorasmith.models.files.summary import read_model_info
from lorasmith.models.load import load_clip_network, load_model
from lorasmith.models.text.tokenizer_files import read_tokenizer

NEEDED = [
    path.relative_to(EMBEDDED).as_posix()
    for path in sorted(EMBEDDED.rglob("*"))
    if path.is_file() and path.name != "README.md" and "image_tower" not in path.parts
]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries), encoding="utf-8")


def refuse(path: Path | str) -> str:
    """Return the one line with which a model is refused, quickly and before it is loaded."""
    start = time.process_time()
    with pytest.raises(WeightsError) as caught:
        read_model_info(path)
    with pytest.raises(WeightsError):
        load_model(path)
    assert time.process_time() - start < 10  # not the clock: the machine may be busy
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- half-downloaded ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", NEEDED)
@pytest.mark.parametrize("how", ["absent", "link to nothing"])
def test_every_missing_file_is_named(file: str, how: str, tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    (folder / file).unlink()
    if how == "link to nothing":  # as the hub's cache has after a broken download
        (folder / file).symlink_to(tmp_path / "blobs" / "incomplete")
    refusal = refuse(folder)
    assert Path(file).parent.as_posix().removeprefix(".") in refusal
    assert Path(file).name in refusal
    assert "download" in refusal


def test_tokenizer_needs_both_of_its_older_files(folder: Path) -> None:
    tokenizer = folder / "tokenizer"
    whole = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(whole["vocab"]), encoding="utf-8")
    assert "tokenizer/merges.txt is missing" in refuse(folder)
    merges = [" ".join(merge) for merge in whole["merges"]]
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (tokenizer / "merges.txt").write_text(lines, encoding="utf-8")
    assert read_model_info(folder).variant.family_name == "sd1"
    (tokenizer / "merges.txt").write_text("\n".join(merges[:100]), encoding="utf-8")
    assert "merges.txt: is cut off" in refuse(folder)


def test_half_downloaded_id_says_how_to_fetch_the_rest(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home, commit = tmp_path / "models--some--model", "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = shutil.copytree(tiny_model, home / "snapshots" / commit)
    (snapshot / "tokenizer" / "tokenizer.json").unlink()
    message = refuse("some/model")
    assert "tokenizer/tokenizer.json is missing" in message
    assert "`lorasmith model info some/model --download` fetches the rest" in message


# --- parts that are not of one model ---------------------------------------------------------


def two_tokens(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    tokens = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    edit(file, model={"type": "BPE", "vocab": tokens, "merges": []}, added_tokens=[])


def short_texts(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=20)


def no_such_special_token(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="<pad>")


def other_end(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", eos_token_id=7)


def other_start(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", bos_token_id=8)


def other_padding(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", pad_token_id=9)


MISFITS: dict[str, Callable[[Path], None]] = {
    "tokenizer has 2 tokens, and its text encoder knows 1,014": two_tokens,
    "takes texts of 20 tokens, and its text encoder of 77": short_texts,
    "lacks the special token <pad>": no_such_special_token,
    "has the eos token 1013, and its text encoder expects 7": other_end,
    "has the bos token 1012, and its text encoder expects 8": other_start,
    "has the pad token 1013, and its text encoder expects 9": other_padding,
}


@pytest.mark.parametrize("message", MISFITS)
def test_tokenizer_of_another_model_is_refused(message: str, folder: Path) -> None:
    MISFITS[message](folder)
    assert message in refuse(folder)


def test_legacy_token_ids_are_accepted(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", bos_token_id=0, eos_token_id=2, pad_token_id=1)
    assert load_model(folder).tokenizer is not None


def test_single_file_with_another_vocabulary_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from lorasmith.core.safetensors_io import SafetensorsFile

    path, changed = tmp_path / "whole.safetensors", tmp_path / "changed.safetensors"
    assert run(["model", "convert", str(tiny_model), str(path)]) == 0
    metadata = SafetensorsFile(path).header.metadata
    saved = json.loads(metadata["lorasmith.model"])
    saved["configs"]["text_encoder"]["eos_token_id"] = 7
    save_file(load_file(path), changed, metadata | {"lorasmith.model": json.dumps(saved)})
    assert "its text encoder expects 7" in refuse(changed)


# --- values that cannot be ---------------------------------------------------------------------

BOMBS: dict[str, tuple[str, dict[str, Any]]] = {
    "num_hidden_layers is 1000000": ("text_encoder", {"num_hidden_layers": 10**6}),
    "max_position_embeddings is 1000000000000": (
        "text_encoder", {"max_position_embeddings": 10**12},
    ),
    "vocab_size is 10000000000": ("text_encoder", {"vocab_size": 10**10}),
    "hidden_size must be one whole number": ("text_encoder", {"hidden_size": [8, 8]}),
    "vocab_size must be one whole number": ("text_encoder", {"vocab_size": None}),
    "hidden_size is 1000000": ("text_encoder", {"hidden_size": 10**6}),
    "layers_per_block is 1000000": ("unet", {"layers_per_block": 10**6}),
    "layers_per_block is -2": ("unet", {"layers_per_block": -2}),
    "block_out_channels is 65536": ("unet", {"block_out_channels": [8, 8, 16, 65_536]}),
    "block_out_channels has 100,000 entries": ("unet", {"block_out_channels": [8] * 100_000}),
    "up to 2,304 transformer layers": (
        "unet", {"layers_per_block": 8, "transformer_layers_per_block": 32},
    ),
    "parameters; networks of at most 10,000,000,000": (
        "unet", {"block_out_channels": [4096] * 4, "layers_per_block": 8},
    ),
    "norm_eps is inf": ("unet", {"norm_eps": 1e400}),
    "cross_attention_dim is 'x": ("unet", {"cross_attention_dim": "x" * 10**6}),
    "sample_size is an object": ("vae", {"sample_size": {"a": 1}}),
    "block_out_channels is 0": ("vae", {"block_out_channels": [0, 8, 8, 8]}),
    "hidden_act is 'os.system'": ("text_encoder", {"hidden_act": "os.system"}),
    "beta_start is nan": ("scheduler", {"beta_start": float("nan")}),
    "beta_end is inf": ("scheduler", {"beta_end": float("inf")}),
    "beta_start is 'small'": ("scheduler", {"beta_start": "small"}),
    "beta_start is larger than beta_end": ("scheduler", {"beta_start": 0.5}),
    "num_train_timesteps is -1": ("scheduler", {"num_train_timesteps": -1}),
    "num_train_timesteps is 1e+300": ("scheduler", {"num_train_timesteps": 1e300}),
    "num_train_timesteps is 10000000000": ("scheduler", {"num_train_timesteps": 10**10}),
    "trained_betas is nan": ("scheduler", {"trained_betas": [float("nan")] * 1000}),
    "trained_betas are not a list": ("scheduler", {"trained_betas": {"a": 1}}),
    "prediction_type is 'flow'": ("scheduler", {"prediction_type": "flow"}),
    "it takes at least two num_train_timesteps": (
        "scheduler",
        {"num_train_timesteps": 1, "rescale_betas_zero_snr": True, "steps_offset": 0},
    ),
    "prediction_type is ['epsilon']": ("scheduler", {"prediction_type": ["epsilon"]}),
    "rescale_betas_zero_snr is 'yes'": ("scheduler", {"rescale_betas_zero_snr": "yes"}),
    "timestep_spacing is 7": ("scheduler", {"timestep_spacing": 7}),
    "steps_offset is -5": ("scheduler", {"steps_offset": -5}),
}  # fmt: skip
"""Part and entries by a piece of the message."""


@pytest.mark.parametrize("message", BOMBS)
def test_impossible_config_is_refused_at_once(message: str, folder: Path) -> None:
    part, entries = BOMBS[message]
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(folder / part / name, **entries)
    refusal = refuse(folder)
    assert message in refusal
    assert f"{part}/{name}" in refusal


def write_pipe(path: Path) -> None:
    os.mkfifo(path)


OTHER_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": write_pipe,
    "deep lists": lambda path: path.write_text("[" * 100_000),
    "deep objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "a number of many digits": lambda path: path.write_text('{"a": ' + "1" * 10_000 + "}"),
    "a list": lambda path: path.write_text("[]"),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "too large": lambda path: path.write_text(" " * (9 * 2**20) + "{}"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json", "unet/config.json", "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ],
)  # fmt: skip
def test_other_things_in_place_of_json_are_refused(what: str, file: str, folder: Path) -> None:
    (folder / file).unlink()
    OTHER_FILES[what](folder / file)
    assert Path(file).name in refuse(folder)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "unet"])
def test_folder_and_file_in_each_other_s_place_are_refused(file: str, folder: Path) -> None:
    path = folder / file
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    assert "unet" in refuse(folder)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-this-name/model", "/dev/null/x"])
def test_impossible_path_is_refused(name: str) -> None:
    refuse(name)


# --- names that could be code ----------------------------------------------------------------

CODE = {
    "auto_map": {"AutoModel": "evil--module.Model"},
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "_attn_implementation_internal": "evil/kernel",
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "evil"},
    "custom_pipelines": {"a": "evil"},
}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_names_of_code_in_configs_are_left_out_with_a_warning(part: str, folder: Path) -> None:
    edit(folder / part / "config.json", **CODE)
    source = open_source(folder)
    with pytest.warns(Warning, match=rf"{part}/config\.json: not used, as it could name code: _a"):
        config = source.config(part)
    assert not CODE.keys() & config.keys()
    network = getattr(load_model(folder), part)
    assert getattr(network.config, "_attn_implementation", None) in (None, "sdpa", "eager")
    assert not hasattr(network.config, "auto_map")


def test_only_known_keys_reach_the_constructors() -> None:
    names = {key for keys in KNOWN_KEYS.values() for key in keys}
    assert not names & CODE.keys()
    marks = ("implementation", "remote", "map", "quant_", "custom", "kernel_", "path", "import")
    known = {"use_quant_conv", "use_post_quant_conv"}
    assert {name for name in names if any(mark in name for mark in marks)} <= known


def test_clip_of_a_judge_takes_known_keys_only(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    ids = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99}
    vision = {**small, "image_size": 32, "patch_size": 8}
    network = CLIPModel(CLIPConfig(text_config={**small, **ids}, vision_config=vision))
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part |= CODE
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(Warning, match="could name code"):
        loaded = load_clip_network(CLIPModel, tmp_path)
    assert loaded.config._attn_implementation in ("sdpa", "eager")
    for name, value in network.state_dict().items():
        assert value.equal(loaded.state_dict()[name])
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="only pickled weights"):
        load_clip_network(CLIPModel, tmp_path)


# --- noise at which nothing can be predicted ---------------------------------------------------


def test_zero_terminal_snr_with_noise_prediction_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    out = tmp_path / "out"
    for sampler in ("ddim", "euler"):
        arguments = ["--sampler", sampler, "--steps", "2", "--out", str(out)]
        assert run(["generate", "a pear", "-m", str(folder), *arguments]) == 1
        message = capsys.readouterr().err
        assert "set rescale_betas_zero_snr to false, or prediction_type to v_prediction" in message
        assert "precision" not in message
    assert run(["model", "info", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "every picture would be black" in shown.err
    assert "zero terminal SNR" in shown.out
    for number in range(4):
        image = Image.new("RGB", (64, 64), (60 * number, 90, 200))
        write_image(tmp_path / "data" / f"{number}.png", image, "ink, a pear")
    arguments = ["--data", str(tmp_path / "data"), "--tag", "ink", "--out", str(out / "ink")]
    assert run(["train", *arguments, "-m", str(folder), "--steps", "2"]) == 1
    assert "every picture would be black" in capsys.readouterr().err
    assert not (out / "ink").exists()
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert run(["generate", "a pear", "-m", str(folder), "--steps", "2", "--out", str(out)]) == 0


# --- tokenizers are those of transformers ------------------------------------------------------


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_tokenizer_equals_that_of_transformers(part: str, tiny_sdxl: Path, tmp_path: Path) -> None:
    from transformers import AddedToken, CLIPTokenizer

    folder = shutil.copytree(tiny_sdxl / part, tmp_path / part)
    added = CLIPTokenizer.from_pretrained(folder)
    added.add_tokens(["<cat-toy>", AddedToken("qq7", normalized=True)])
    added.save_pretrained(tmp_path / "added")
    for path in (folder, tmp_path / "added"):
        expected, tokenizer = CLIPTokenizer.from_pretrained(path), read_tokenizer(path)
        assert tokenizer.get_vocab() == expected.get_vocab()
        assert tokenizer.special_tokens_map == expected.special_tokens_map
        for text in ("a <cat-toy> and qq7", "Ünïcode  c++ 'll", "a<|endoftext|>b", "", "🍐"):
            arguments = {"padding": "max_length", "truncation": True, "max_length": 77}
            assert tokenizer(text, **arguments) == expected(text, **arguments)
