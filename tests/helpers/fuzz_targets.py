"""What is fuzzed: for each parser, inputs that look almost right, and a call that reads them.

A target's call may raise LorasmithError, and nothing else.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lorasmith.config.features import FeaturesConfig, load_train_config
from lorasmith.config.fields import list_fields
from lorasmith.config.pretrain import ClipPretrainConfig, UnetPretrainConfig, VaePretrainConfig
from lorasmith.config.reading.foreign_names import FOREIGN_NAMES
from lorasmith.config.reading.load import load_config, load_saved_config
from lorasmith.config.reading.old_keys import VERSION_1_KEYS
from lorasmith.config.sweep import SWEEPABLE, load_sweep, parse_vary
from lorasmith.config.train_config import TrainConfig


@dataclass(frozen=True)
class FuzzTarget:
    """A parser and inputs for it."""

    inputs: SearchStrategy[Any]
    call: Callable[[Any], object]


FOLDER = Path(tempfile.mkdtemp(prefix="lorasmith-fuzz-"))


def joined(*pieces: str, size: int = 12) -> SearchStrategy[str]:
    """Texts of given pieces and of anything, surrogates too."""
    anything = st.text(st.characters(codec=None, categories=None), max_size=4)
    return st.lists(st.one_of(st.sampled_from(pieces), anything), max_size=size).map("".join)


# --- prompts and captions -----------------------------------------------------------------------

_PROMPT = joined(
    "(", ")", "[", "]", "\\", "\\(", ":", "1.2", ":1.3)", "BREAK", " ", "  ", "a cat", ",", "|",
    "<lora:", ">", "<lora:x>", "<lora:x:1:0.5:lbw=OUTD:start=2>", "te=", "unet=1", "step=1-3",
    "lbw=1,1,1", "stop=", "-", "9999", "1e400", "nan", "<", "__wild__", "{a|b}", "\n",
)  # fmt: skip
_OPTION = joined(
    "x", ":", "0.5", "te=", "unet=", "lbw=", "ALL0.5", "start=", "stop=", "step=", "1-2", "a/b",
    "C:\\", ".safetensors", "-1", "nan", "1e400", "99999999", "\0", ",",
)  # fmt: skip
_CAPTION = joined("inkq", "INKQ", " ", "  ", ",", ", ", "a", "c++", "\\(", "(", ")", "_", "\n", "ß")


def _read_prompt(text: str) -> None:
    from lorasmith.inference.prompts.parse_prompt import parse_negative_prompt, parse_prompt

    try:
        parse_negative_prompt(text)
    finally:
        prompt = parse_prompt(text)
    assert len(prompt.text) <= len(text) + 6 * text.count("BREAK") + len(prompt.weighted[0])
    assert all(abs(span.weight) <= 1000 for section in prompt.weighted for span in section)


def _read_lora_option(text: str) -> None:
    from lorasmith.inference.loras.find import find_lora, parse_lora_option

    find_lora(parse_lora_option(text).name, FOLDER)


def _read_block_weights(text: str) -> None:
    from lorasmith.adapters.naming.block_weights import parse_block_weights

    parse_block_weights(text)


def _augment(texts: tuple[str, str, str]) -> None:
    import torch

    from lorasmith.data.caption_augmentation import drop_caption, shuffle_caption
    from lorasmith.data.caption_tags import count_tags

    caption, _, _ = texts
    generator = torch.Generator().manual_seed(0)
    parts = sorted(part.strip() for part in caption.split(",") if part.strip())
    shuffled = shuffle_caption(caption, 1, generator)
    assert sorted(part.strip() for part in shuffled.split(",") if part.strip()) == parts
    assert drop_caption(caption, 0.5, generator) in ("", caption)
    count_tags([caption, shuffled])


def _read_caption_file(content: bytes) -> None:
    from lorasmith.data.reading.captions.caption_file import decode_caption

    caption = decode_caption(content)
    assert not (caption.text and caption.error)


# --- settings -----------------------------------------------------------------------------------

_CONFIGS = (TrainConfig, FeaturesConfig, ClipPretrainConfig, VaePretrainConfig, UnetPretrainConfig)
_KEYS = sorted(
    {key for config in _CONFIGS for key, _, _ in list_fields(config)}
    | set(VERSION_1_KEYS)
    | set(FOREIGN_NAMES)
    | {"config_version", "feature", "vary", "lora", "train", "data", "stages", "loop"}
)
_NUMBER = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 10**400, 1e308, -0.0]),
)
_TEXT = joined("auto", "cpu", "bf16", "cosine", "adamw", "512", ",", "/", "~", "\\", "12GB", "1e-4")
_LEAF = st.one_of(st.none(), st.booleans(), _NUMBER, _TEXT)
_VALUE = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_KEYS), _TEXT), inner, max_size=3),
    ),
    max_leaves=6,
)
_GOOD: Mapping[str, Any] = {
    "data.path": "p", "data.tag": "t", "output.name": "n", "train.output_dir": "o",
    "train.steps": 5, "train.batch_size": 2, "train.learning_rate": 1e-3, "vae": "v",
    "text_encoder": "c", "stages": [{"resolution": 64, "steps": 3}],
    "feature": [{"tag": "t", "data": "p"}],
}  # fmt: skip


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, Any]:
    """Settings: some right ones, and any values under known and unknown keys."""
    flat = {key: _GOOD[key] for key in draw(st.sets(st.sampled_from(sorted(_GOOD))))}
    keys = st.one_of(st.sampled_from(_KEYS), _TEXT)
    flat |= draw(st.dictionaries(keys, _VALUE, max_size=4))
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        branch = tree
        *sections, last = key.split(".")
        for section in sections:
            inner = branch.setdefault(section, {})
            branch = inner if isinstance(inner, dict) else {}
        branch[last] = value
    return tree


def _validate_tree(given: tuple[int, dict[str, Any]]) -> None:
    kind, tree = given
    if kind < len(_CONFIGS):
        load_config(_CONFIGS[kind], base=tree)
    elif kind == len(_CONFIGS):
        load_sweep(None, base=tree)
    else:
        load_train_config(None, base=tree)


_TOML_PIECES = (
    "[data]\n", "[train]\n", "[[feature]]\n", "[vary]\n", "path = ", "tag = ", "steps = ", "'x'",
    '"a\\nb"', "1e400", "inf", "nan", "true", "9" * 30, "0x" + "f" * 40, "\n", "[", "]", "{", "}",
    "=", ".", "'''", '"""', "\\", "\\u", "2020-01-01", "10:00:00", "config_version = 1\n", "#",
    "[output]\nname = 'n'\n",
)  # fmt: skip
_TOML = st.one_of(
    st.binary(max_size=60),
    joined(*_TOML_PIECES).map(lambda text: text.encode("utf-8", "surrogatepass")),
    joined(*_TOML_PIECES).map(lambda text: text.encode("utf-16", "surrogatepass")),
)


def _read_settings_file(content: bytes) -> None:
    path = FOLDER / "run.toml"
    path.write_bytes(content)
    try:
        load_train_config(path)
    finally:
        load_saved_config(TrainConfig, path)


def _override(given: tuple[str, str]) -> None:
    key, value = given
    good = {"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}}
    load_config(TrainConfig, None, [f"{key}{value}"], good)


def _vary(texts: list[str]) -> None:
    good = {"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}}
    sweep = load_sweep(None, (), parse_vary(texts), base=good)
    names = [variant.name for variant in sweep.variants()]
    assert len(set(names)) == len(names)


_OVERRIDE_VALUE = joined(
    "=",
    "1",
    "true",
    "1e400",
    "nan",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    ",",
    "a=1",
    "\n",
    ".",
    "9" * 5000,
)
_SETTING = st.one_of(
    st.sampled_from(sorted(SWEEPABLE)), st.sampled_from(_KEYS), joined(".", "train", "a", " ")
)
_VARIED = st.tuples(
    _SETTING, st.lists(st.one_of(_NUMBER.map(str), _OVERRIDE_VALUE), max_size=4).map(",".join)
).map("=".join)


# --- files --------------------------------------------------------------------------------------

_JSON_LEAF = st.one_of(st.none(), st.booleans(), _NUMBER, joined("x.png", "0.png", "..", "/", "a"))
_JSON = st.recursive(
    _JSON_LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def _json_line(value: Any) -> bytes:
    return json.dumps(value).encode()


def _damaged(texts: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """The same, some of them with a few bytes changed or cut off."""

    def damage(content: bytes, place: int, new: bytes, cut: bool) -> bytes:
        place %= len(content) + 1
        return content[:place] + new + (b"" if cut else content[place + len(new) :])

    damaged = st.builds(damage, texts, st.integers(0), st.binary(max_size=3), st.booleans())
    return st.one_of(texts, damaged)


_ROW = st.fixed_dictionaries(
    {},
    optional={
        "file_name": st.one_of(st.sampled_from(["0.png", "1.png", "sub/2.png", "../x.png"]), _JSON),
        "text": _JSON,
        "caption": _JSON,
        "captions": _JSON,
        "aesthetic": _JSON,
    },
)
_MANIFEST = _damaged(st.lists(st.one_of(_ROW, _JSON).map(_json_line), max_size=4).map(b"\n".join))


def _read_manifest(content: bytes) -> None:
    from PIL import Image

    from lorasmith.data.reading.reader import find_rows, read_rows

    folder = FOLDER / "manifest"
    if not folder.is_dir():
        (folder / "sub").mkdir(parents=True)
        for name in ("0.png", "1.png", "sub/2.png"):
            Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "metadata.jsonl").write_bytes(content)
    find_rows(folder)
    read_rows(folder)


_ENTRY = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "F16", "U8", "I64", "BOOL"]), _JSON),
            "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), _JSON),
            "data_offsets": st.one_of(
                st.tuples(st.integers(0, 64), st.integers(0, 64)).map(list), _JSON
            ),
        }
    ),
    _JSON,
)


def _pack(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


_HEADER = _damaged(
    st.builds(
        _pack,
        st.dictionaries(
            st.one_of(st.sampled_from(["__metadata__", "a", "b"]), _TEXT), _ENTRY, max_size=3
        ).map(_json_line),
        st.binary(max_size=64),
    )
)


def _read_header(content: bytes) -> None:
    from lorasmith.core.safetensors_header import read_header
    from lorasmith.core.safetensors_io import load_metadata, load_tensors

    path = FOLDER / "x.safetensors"
    path.write_bytes(content)
    read_header(path)
    load_tensors(path)
    load_metadata(path)


_LORA_KEY = joined(
    "lora_unet_", "lora_te_", "down_blocks_0_attentions_0_", "proj_in", "unet.", "mid_block.",
    ".lora_down.weight", ".lora_up.weight", ".alpha", ".lora_A.weight", ".lora_B.weight",
    ".dora_scale", ".hada_w1_a", ".lokr_w1", ".diff", "bundle_emb.", "text_model.", ".", "_", "0",
    size=6,
)  # fmt: skip
_SHAPE = st.lists(st.integers(0, 4), max_size=4)
_METADATA_TEXT = st.one_of(_JSON.map(json.dumps), _TEXT, st.just("[" * 100_000))


@st.composite
def _lora_files(draw: st.DrawFn) -> bytes:
    """LoRA files whose keys and shapes are almost those of one."""
    header: dict[str, Any] = {}
    offset = 0
    for key in draw(st.lists(_LORA_KEY, max_size=4, unique=True)):
        shape = draw(_SHAPE)
        size = 4
        for side in shape:
            size *= side
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    names = st.sampled_from(
        ["lora_adapter_metadata", "lorasmith.gate", "lorasmith.tag", "lorasmith.step",
         "ss_tag_frequency", "ss_base_model_version", "modelspec.architecture", "x"]
    )  # fmt: skip
    header["__metadata__"] = draw(st.dictionaries(names, _METADATA_TEXT, max_size=3))
    return _pack(_json_line(header), bytes(offset))


def _read_lora(content: bytes) -> None:
    from lorasmith.adapters.files.lora_file import load_lora_file
    from lorasmith.adapters.gating.gate_metadata import read_gate
    from lorasmith.adapters.tools.info import summarize_lora

    path = FOLDER / "lora.safetensors"
    path.write_bytes(content)
    lora = load_lora_file(path)
    summarize_lora(lora)
    read_gate(lora)


# --- what runs leave ----------------------------------------------------------------------------

_JSON_FILE = st.one_of(
    _damaged(_JSON.map(_json_line)), st.binary(max_size=30), st.just(b"[" * 100_000)
)


def _read_run_files(content: bytes) -> None:
    from lorasmith.core.errors import LorasmithError
    from lorasmith.loops.checkpoint import verify_checkpoint
    from lorasmith.loops.tracking import read_log
    from lorasmith.models.read_json import read_json
    from lorasmith.runs.summary import RunSummary

    path = FOLDER / "manifest.json"
    path.write_bytes(content)
    calls: list[Callable[[], object]] = [
        lambda: read_log(path),
        lambda: RunSummary.read(path),
        lambda: read_json(FOLDER, path.name),
        lambda: verify_checkpoint(FOLDER),
    ]
    for call in calls:
        with suppress(LorasmithError):
            call()


_LOG_KEYS = ("step", "time", "loss", "held_out", "held_out_base", "held_out_gain", "lr")
_LOG_LINE = st.one_of(
    st.fixed_dictionaries({"step": st.integers(0, 50), "loss": st.floats(0.001, 9)}),
    st.dictionaries(st.sampled_from(_LOG_KEYS), st.one_of(st.floats(0, 1), _JSON_LEAF)),
)
_LOG = _damaged(st.lists(_LOG_LINE.map(_json_line), max_size=12).map(b"\n".join))
_SUMMARY_FACTS = {
    "name": "x", "tag": "t", "family": "sd1", "pictures": 3, "steps": 5, "seconds": 1.5,
    "parameters": 10,
}  # fmt: skip
_SUMMARY = st.dictionaries(
    st.sampled_from([*_SUMMARY_FACTS, "held_out", "best_step", "stopped", "sha256", "x"]),
    st.one_of(_JSON, st.text(max_size=4)),
    max_size=2,
).map(lambda changes: _json_line(_SUMMARY_FACTS | changes))


def _render_report(given: tuple[bytes, bytes | None]) -> None:
    from lorasmith.reports.pages.run import render_run_page
    from lorasmith.runs.run_folder import read_run_folder

    folder = FOLDER / "run"
    folder.mkdir(exist_ok=True)
    (folder / "run.toml").write_text(
        'config_version = 2\n[data]\npath = "p"\ntag = "t"\n[output]\nname = "n"\n'
    )
    log, summary = given
    (folder / "log.jsonl").write_bytes(log)
    (folder / "summary.json").unlink(missing_ok=True)
    if summary is not None:
        (folder / "summary.json").write_bytes(summary)
    render_run_page(read_run_folder(folder))


# --- words and numbers --------------------------------------------------------------------------

_SELECTOR = joined(
    "attention", "ff", "all-linear", "conv", "text-encoder", "+", "@", "down", "up.1", "mid", ".",
    "IN04", "OUT05", "b-lora", "to_k", "attn2", "*", "?", "[", "]", "[!", "up_blocks.1.*",
    "text_encoder", "unet.", " ", "-",
)  # fmt: skip


def select_layers(target: str) -> None:
    """Select layers of the smallest model."""
    from lorasmith.adapters.targeting.selectors import match_target

    match_target(target, _layers(), "lora.targets")


_refs: list[Any] = []


def _layers() -> list[Any]:
    from helpers.tiny_models import make_tiny, open_model
    from lorasmith.adapters.naming.layer_names import find_layer_refs

    if not _refs:
        _refs.extend(find_layer_refs(open_model(make_tiny(FOLDER / "tiny"))).values())
    return _refs


def _read_numbers(text: str) -> None:
    from lorasmith.config.optimization import parse_memory_size
    from lorasmith.core.errors import ConfigError
    from lorasmith.inference.options import parse_size

    with suppress(ValueError):  # settings say where
        parse_memory_size(text)
    with suppress(ConfigError):
        parse_size(text)


_LORA_KEY = joined(
    "lora_unet_", "lycoris_", "unet.", "lora_te_", "text_encoders.", "clip_l.", "down_blocks", "_",
    "input_blocks_", ".", "0", "1", "11", "attentions", "to_q", "to_out", "resnets", "in_layers_2",
    "conv", "mid_block", "text_model", "encoder.layers.", "mlp.fc1", ".alpha", ".lora_up.weight",
    ".lora_A", ".weight", ".diff", "hada_w1_a", "base_model.model.",
)  # fmt: skip


def _read_lora_key(key: str) -> None:
    from lorasmith.adapters.files.key_formats import parse_key
    from lorasmith.adapters.naming.parse_layer_name import parse_layer_name
    from lorasmith.adapters.tools.merge import lbw_block

    parsed = parse_key(key)
    layer = parse_layer_name(parsed.raw_name if parsed else key)
    if layer is not None:
        assert parse_layer_name(layer.kohya_name(None)) == layer
    lbw_block(key, "sdxl")


FUZZ_TARGETS: Mapping[str, FuzzTarget] = {
    "prompt": FuzzTarget(_PROMPT, _read_prompt),
    "lora-option": FuzzTarget(_OPTION, _read_lora_option),
    "block-weights": FuzzTarget(_OPTION, _read_block_weights),
    "caption": FuzzTarget(st.tuples(_CAPTION, _CAPTION, _CAPTION), _augment),
    "caption-file": FuzzTarget(st.binary(max_size=60), _read_caption_file),
    "settings-file": FuzzTarget(_TOML, _read_settings_file),
    "settings-values": FuzzTarget(
        st.tuples(st.integers(0, len(_CONFIGS) + 1), _trees()), _validate_tree
    ),
    "override": FuzzTarget(st.tuples(_SETTING, _OVERRIDE_VALUE), _override),
    "sweep": FuzzTarget(st.lists(_VARIED, max_size=3), _vary),
    "manifest": FuzzTarget(_MANIFEST, _read_manifest),
    "header": FuzzTarget(_HEADER, _read_header),
    "lora-key": FuzzTarget(_LORA_KEY, _read_lora_key),
    "lora-file": FuzzTarget(_lora_files(), _read_lora),
    "run-files": FuzzTarget(_JSON_FILE, _read_run_files),
    "report": FuzzTarget(st.tuples(_LOG, st.one_of(st.none(), _SUMMARY)), _render_report),
    "selector": FuzzTarget(_SELECTOR, select_layers),
    "numbers": FuzzTarget(joined("12", "GB", "x", ".", " ", "MiB", "9" * 400), _read_numbers),
}
