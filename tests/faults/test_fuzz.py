"""Parsers of anything that users and files say: only errors of our own, and in linear time.

`python tests/faults/fuzz.py --minutes 60` tries new inputs for as long as one likes.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fuzz_targets import FUZZ_TARGETS, joined, select_layers
from lorasmith.adapters.files.key_formats import parse_key
from lorasmith.config.reading.load import load_config
from lorasmith.config.reading.read_toml import read_toml
from lorasmith.config.sweep import load_sweep, parse_vary
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import LorasmithError
from lorasmith.core.safetensors_header import read_header
from lorasmith.core.text.terminal import escape_control_characters, shorten
from lorasmith.data.caption_augmentation import shuffle_caption
from lorasmith.data.caption_tags import count_tags
from lorasmith.data.reading.captions.caption_file import decode_caption
from lorasmith.data.reading.reader import find_rows
from lorasmith.inference.loras.find import parse_lora_option
from lorasmith.inference.options import parse_size
from lorasmith.inference.prompts.parse_prompt import parse_prompt

LARGE, SMALL = 100_000, 1_000
RATIO = 1_000
"""Linear work grows 100-fold, quadratic work 10,000-fold."""


def attempt(name: str, value: Any) -> None:
    with suppress(LorasmithError):
        FUZZ_TARGETS[name].call(value)


@pytest.mark.parametrize("name", FUZZ_TARGETS)
@pytest.mark.parametrize("inputs", [50, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_input_is_read_or_refused_in_our_words(name: str, inputs: int) -> None:
    @settings(
        max_examples=inputs,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(FUZZ_TARGETS[name].inputs)
    def run(value: Any) -> None:
        attempt(name, value)

    run()


@given(joined("a", "\x1b[0m", "\n"), st.integers(10, 20))
@settings(max_examples=50, derandomize=True, database=None)
def test_any_text_is_printable_after_escaping(text: str, limit: int) -> None:
    plain = escape_control_characters(text)
    assert escape_control_characters(plain) == plain
    plain.encode("utf-8")
    assert len(shorten(plain, limit)) <= limit


# --- time -----------------------------------------------------------------------------------


def seconds(call: Callable[[Any], object], value: Any) -> float:
    start = time.process_time()
    with suppress(LorasmithError):
        call(value)
    return time.process_time() - start


def assert_linear(call: Callable[[Any], object], make: Callable[[int], Any]) -> None:
    """Read an input of a thousand and one of a hundred thousand characters."""
    call_once = seconds(call, make(SMALL))  # imports and caches are ready now
    small = max(min(call_once, seconds(call, make(SMALL))), 0.002)
    assert seconds(call, make(LARGE)) < RATIO * small


PROMPTS: dict[str, Callable[[int], str]] = {
    "spaces": lambda n: f"(a:{' ' * n})",
    "colons and spaces": lambda n: f"(a{': ' * (n // 2)})",
    "unclosed spaces": lambda n: f"[a:{' ' * n}",
    "opening": lambda n: "(" * n,
    "nested": lambda n: "(" * 90 + "(a)" * (n // 3) + ")" * 90,
    "many": lambda n: "(a:1.2) " * (n // 8),
    "escapes": lambda n: "\\(" * (n // 2),
    "backslashes": lambda n: "\\" * n,
    "digits": lambda n: f"(a:{'1' * n})",
    "breaks": lambda n: "BREAK " * (n // 6),
    "openings of LoRAs": lambda n: "<lora:" * (n // 6),
    "LoRAs": lambda n: "<lora:x:1>" * (n // 10),
    "parts of a LoRA": lambda n: f"<lora:{':' * n}>",
    "one name": lambda n: f"<lora:{'x' * n}>",
    "plain": lambda n: "a" * n,
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_parsed_in_linear_time(name: str) -> None:
    assert_linear(parse_prompt, PROMPTS[name])


GOOD = {"data": {"path": "p", "tag": "t"}, "output": {"name": "n"}}


def _override(text: str) -> object:
    return load_config(TrainConfig, None, [text], GOOD)


def _vary(text: str) -> object:
    return load_sweep(None, (), parse_vary([text]), base=GOOD)


def _shuffle(caption: str) -> object:
    import torch

    return shuffle_caption(caption, 1, torch.Generator().manual_seed(0))


@cache
def _tokenizer() -> Any:
    from lorasmith.models.text.tokenizer import create_clip_tokenizer

    return create_clip_tokenizer(49408)


def _count_tokens(text: str) -> object:
    return _tokenizer()(text, add_special_tokens=False, truncation=False, verbose=False)


TEXTS: dict[str, tuple[Callable[[str], object], Callable[[int], str]]] = {
    "caption of many tags": (_shuffle, lambda n: "a, " * (n // 3)),
    "tags": (lambda text: count_tags([text]), lambda n: ", ".join(map(str, range(n // 7)))),
    "caption of spaces": (lambda text: decode_caption(text.encode()), lambda n: " " * n),
    "override": (_override, lambda n: f"train.steps={'9' * n}"),
    "override of brackets": (_override, lambda n: f"lora.targets={'[' * n}"),
    "override of parts": (_override, lambda n: f"{'a.' * (n // 2)}a=1"),
    "unknown key": (_override, lambda n: f"{'x' * n}=1"),
    "unknown value": (_override, lambda n: f"train.optimizer={'x' * n}"),
    "list of an override": (_override, lambda n: f"lora.targets=[{'1,' * (n // 2)}]"),
    "values of a sweep": (_vary, lambda n: f"train.seed={','.join(map(str, range(n // 7)))}"),
    "brackets of a sweep": (_vary, lambda n: f"lora.rank={'[' * n}"),
    "selector of words": (select_layers, lambda n: "ff+" * (n // 3) + "ff"),
    "selector of stars": (select_layers, lambda n: "*a" * (n // 2)),
    "selector of one word": (select_layers, lambda n: "x_" * (n // 2)),
    "selector of dots": (select_layers, lambda n: "a." * (n // 2)),
    "option of colons": (parse_lora_option, lambda n: "a/b" + ":" * n),
    "option of parts": (parse_lora_option, lambda n: "a:" * (n // 2)),
    "tokens of letters": (_count_tokens, lambda n: "qzxv" * (n // 4)),
    "tokens of accents": (_count_tokens, lambda n: "e" + "\u0301" * n),
    "key of dots": (parse_key, lambda n: "a." * (n // 2) + "lora_down.weight"),
    "key of prefixes": (parse_key, lambda n: "unet." * (n // 5) + "to_q.lora_A.weight"),
    "key of words": (parse_key, lambda n: "lora_unet_" + "to_q_" * (n // 5) + ".lora_up.weight"),
    "key of suffixes": (parse_key, lambda n: "a" + ".lora_A" * (n // 7)),
    "key of underscores": (parse_key, lambda n: "lora_unet" + "_" * n + ".alpha"),
    "size": (parse_size, lambda n: " " * n + "1"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_read_in_linear_time(name: str) -> None:
    assert_linear(*TEXTS[name])


FILES: dict[str, tuple[str, Callable[[Path], object], Callable[[int], str]]] = {
    "dotted keys": ("run.toml", read_toml, lambda n: "a." * (n // 2) + "a = 1"),
    "tables": ("run.toml", read_toml, lambda n: "".join(f"[t{k}]\n" for k in range(n // 6))),
    "strings": ("run.toml", read_toml, lambda n: 'a = "' + "\\n" * (n // 2) + '"'),
    "quotes": ("run.toml", read_toml, lambda n: "a = " + '"' * n),
    "names of images": (
        "metadata.jsonl",
        lambda path: find_rows(path.parent),
        lambda n: json.dumps({"file_name": "x/" * (n // 2), "text": "a"}),
    ),
    "deep metadata": ("metadata.jsonl", lambda path: find_rows(path.parent), lambda n: "[" * n),
    "lines of metadata": (
        "metadata.jsonl",
        lambda path: find_rows(path.parent),
        lambda n: "{}\n" * (n // 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_in_linear_time(tmp_path: Path, name: str) -> None:
    file, read, make = FILES[name]

    def write_and_read(text: str) -> object:
        (tmp_path / file).write_text(text, encoding="utf-8")
        return read(tmp_path / file)

    assert_linear(write_and_read, make)


def test_headers_are_read_in_linear_time(tmp_path: Path) -> None:
    def header(count: int) -> bytes:
        entries = {
            f"{k}": {"dtype": "U8", "shape": [1], "data_offsets": [k, k + 1]} for k in range(count)
        }
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + bytes(count)

    def read(content: bytes) -> object:
        (tmp_path / "x.safetensors").write_bytes(content)
        return read_header(tmp_path / "x.safetensors")

    assert_linear(read, lambda n: header(n // 20))
