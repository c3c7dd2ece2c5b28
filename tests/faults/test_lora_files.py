"""LoRA files that are broken or made to do harm: what they can and cannot do.

Whatever a file holds, reading it ends at once with its layers or with an error of one line that
names it; nothing in it is run, and nothing of the size that it declares is computed first.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.lora_files import make_lora
from lorasmith.adapters.files.key_formats import parse_key
from lorasmith.adapters.files.lora_file import load_lora_file, read_lora_file
from lorasmith.adapters.injection.compatibility import fit_to_model
from lorasmith.adapters.kinds.loha import LohaLayer
from lorasmith.adapters.naming.parse_layer_name import parse_layer_name
from lorasmith.adapters.tools.canonical_layers import canonical_layers
from lorasmith.adapters.tools.info import summarize_lora
from lorasmith.adapters.tools.merge import lbw_block
from lorasmith.cli import run
from lorasmith.core.errors import LorasmithError, LorasmithWarning, WeightsError
from lorasmith.inference.pipeline import Pipeline
from lorasmith.models.model import Model

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I8": 1, "BOOL": 1, "F8_E4M3": 1,
         "F8_E5M2": 1, "C64": 8, "U16": 2, "U64": 8}  # fmt: skip
"""Bytes per number."""
Shapes = dict[str, tuple[int, ...]]


def write_file(
    path: Path,
    shapes: Shapes,
    metadata: dict[str, str] | None = None,
    dtype: str | dict[str, str] = "F32",
) -> Path:
    """Write a safetensors file of ones, or of whatever the bytes 0x3f mean in a dtype."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, shape in shapes.items():
        kind = dtype if isinstance(dtype, str) else dtype[key]
        size = math.prod(shape) * SIZES[kind]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\x3f" * offset)
    return path


def lora_shapes(name: str = NAME, suffixes: tuple[str, str] = ("lora_down", "lora_up")) -> Shapes:
    return {f"{name}.{suffixes[0]}.weight": (2, 16), f"{name}.{suffixes[1]}.weight": (16, 2)}


# --- expressions in metadata ----------------------------------------------------------------


def peft_file(path: Path, patterns: dict[str, Any]) -> Path:
    entries = {"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": patterns}
    metadata = {"lora_adapter_metadata": json.dumps(entries)}
    return write_file(path, lora_shapes(DOTTED, ("lora_A", "lora_B")), metadata)


@pytest.mark.parametrize("pattern", ["(([a-z0-9_.]+)+)+!", "to_.*", "attn[12]", "a" * 300, "to_k|"])
def test_expression_in_metadata_is_not_run(tmp_path: Path, pattern: str) -> None:
    """The first would run for years: it is what a file of 678 bytes hung every command with."""
    file = peft_file(tmp_path / "pattern.safetensors", {pattern: 4})
    with pytest.raises(WeightsError, match=r"alpha_pattern has .* no name of a layer"):
        load_lora_file(file)


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({"to_k": 4}, 4.0),
        ({"attn2.to_k": 4, "to_k": 8}, 4.0),  # the first that applies, as in PEFT
        ({"to_q": 4, "2.to_k": 8, "o_k": 3}, 2.0),  # whole words only
        ({f"^{DOTTED.removeprefix('unet.')}": 4}, 4.0),
        ({"^to_k": 4}, 2.0),
        ({r"attn2\.to_k$": 4}, 4.0),
    ],
)
def test_names_in_metadata_mean_what_they_mean_in_peft(
    tmp_path: Path, patterns: dict[str, Any], alpha: float
) -> None:
    pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key

    path = DOTTED.removeprefix("unet.")
    assert patterns.get(get_pattern_key(patterns, path), 2) == alpha
    file = load_lora_file(peft_file(tmp_path / "names.safetensors", patterns))
    assert file.layers[NAME].alpha == alpha


def test_many_patterns_are_looked_up_not_searched(tmp_path: Path) -> None:
    patterns = {f"blocks.{index}.to_k": 4 for index in range(20_000)}
    file = load_lora_file(peft_file(tmp_path / "many.safetensors", patterns))
    assert file.layers[NAME].alpha == 2.0


@pytest.mark.parametrize("alpha", [math.inf, math.nan, "much", [1], None, {}, 10**400])
def test_alpha_in_metadata_is_a_finite_number(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(WeightsError, match="lora_adapter_metadata: "):
        load_lora_file(peft_file(tmp_path / "alpha.safetensors", {"to_k": alpha}))


# --- sizes that are only declared -----------------------------------------------------------

BIG = 50_000
BOMBS: dict[str, Shapes] = {
    "LoHa": {"hada_w1_a": (BIG, 1), "hada_w1_b": (1, BIG), "hada_w2_a": (BIG, 1),
             "hada_w2_b": (1, BIG)},
    "LoHa by broadcasting": {"hada_w1_a": (BIG, 1), "hada_w1_b": (1, 1), "hada_w2_a": (1, 1),
                             "hada_w2_b": (1, BIG)},
    "LoHa with cores": {"hada_w1_a": (1, 900), "hada_w1_b": (1, 900), "hada_t1": (1, 1, 99, 99),
                        "hada_w2_a": (1, 900), "hada_w2_b": (1, 900), "hada_t2": (1, 1, 99, 99)},
    "LoKr": {"lokr_w1": (300, 300), "lokr_w2": (300, 300)},
    "LoKr of nothing": {"lokr_w1": (0, 1), "lokr_w2_a": (BIG, 1), "lokr_w2_b": (1, BIG)},
    "LoKr in factors": {"lokr_w1_a": (BIG, 1), "lokr_w1_b": (1, BIG), "lokr_w2": (1, 1)},
    "LoCon": {"lora_down.weight": (30, 1, 1, 1), "lora_up.weight": (BIG, 30, 1, 1),
              "lora_mid.weight": (30, 30, 20, 20)},
    "LoRA": {"lora_down.weight": (1, BIG), "lora_up.weight": (BIG, 1)},
    "DoRA of LoHa": {"hada_w1_a": (BIG, 1), "hada_w1_b": (1, BIG), "hada_w2_a": (BIG, 1),
                     "hada_w2_b": (1, BIG), "dora_scale": (BIG, 1)},
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_declared_size_is_refused_before_work(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {f"{NAME}.{suffix}": shape for suffix, shape in BOMBS[kind].items()}
    file = write_file(tmp_path / "bomb.safetensors", shapes)
    assert file.stat().st_size < 8_000_000
    for operation in ("matmul", "einsum", "mul"):
        monkeypatch.setattr(torch, operation, only_on_meta(getattr(torch, operation)))
        if hasattr(torch.Tensor, f"__{operation}__"):
            original = getattr(torch.Tensor, f"__{operation}__")
            monkeypatch.setattr(torch.Tensor, f"__{operation}__", only_on_meta(original))
    with pytest.raises(WeightsError, match=r"bomb\.safetensors: "):
        read_lora_file(file)


def only_on_meta(function: Any) -> Any:
    def checked(*arguments: Any, **options: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert all(tensor.is_meta for tensor in tensors), "computed before it was refused"
        return function(*arguments, **options)

    return checked


def test_many_wide_layers_are_refused_together(tmp_path: Path) -> None:
    """Each layer is as large as one may be, and all together more than any model."""
    side, shapes = 11_000, {}
    for block in range(75):
        name = f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_{block}_attn1_to_q"
        shapes |= {f"{name}.lokr_w1": (1, 1), f"{name}.lokr_w2_a": (side, 1)}
        shapes |= {f"{name}.lokr_w2_b": (1, side)}
    with pytest.raises(WeightsError, match="75 layers of LoKr declare 9,075,000,000 elements"):
        read_lora_file(write_file(tmp_path / "many.safetensors", shapes))


def test_wide_kind_of_another_shape_is_refused_uncomputed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LohaLayer.unscaled_delta

    def refuse(layer: LohaLayer, parts: Any) -> torch.Tensor:
        assert all(part.is_meta for part in parts.values()), "computed before shapes were compared"
        return original(layer, parts)

    monkeypatch.setattr(LohaLayer, "unscaled_delta", refuse)
    shapes = {f"{NAME}.hada_w{i}_{side}": (800, 1) if side == "a" else (1, 700)
              for i in (1, 2) for side in "ab"}  # fmt: skip
    file = load_lora_file(write_file(tmp_path / "wide.safetensors", shapes))
    with pytest.raises(WeightsError, match="1 of its 1 layers have other shapes"):
        fit_to_model(model, file)


def test_norm_of_a_high_rank_needs_no_square_of_the_rank(tmp_path: Path) -> None:
    """A rank of 200,000 squared would be 320 GB."""
    shapes = {f"{NAME}.lora_down.weight": (200_000, 1), f"{NAME}.lora_up.weight": (1, 200_000)}
    file = load_lora_file(write_file(tmp_path / "rank.safetensors", shapes))
    value = torch.tensor(0x3F3F3F3F, dtype=torch.int32).view(torch.float32).item()
    assert summarize_lora(file).total.norm == pytest.approx(200_000 * value**2)


# --- bad files beside good ones -------------------------------------------------------------


def write_bad_files(folder: Path) -> dict[str, str]:
    """Write files that cannot be read; return what is said about each."""
    good = write_file(folder / "torn.safetensors", lora_shapes()).read_bytes()
    (folder / "torn.safetensors").write_bytes(good[:-7])
    (folder / "empty.safetensors").touch()
    deep = b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / "deep.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    write_file(folder / "tag.safetensors", lora_shapes(), {"lorasmith.tag": "a " * 600_000})
    write_file(folder / "step.safetensors", lora_shapes(), {"lorasmith.step": "1" * 6000})
    return {"torn": "cut off", "empty": "empty", "deep": "header", "pickle": "pickled",
            "tag": "1,199,999 characters", "step": "6,000 digits"}  # fmt: skip


def test_bad_files_of_a_library_never_stop_the_others(model: Model, tmp_path: Path) -> None:
    expected = write_bad_files(tmp_path)
    make_lora(model, tmp_path / "curlyqx.safetensors", {"targets": "*.attn2.to_v@mid"}, 0.5,
              tag="curlyqx")  # fmt: skip
    pipe = Pipeline(model, tmp_path)
    with pytest.warns(LorasmithWarning) as caught:
        assert pipe.load_library(tmp_path) == ("curlyqx",)
    texts = [str(warning.message) for warning in caught]
    for name, reason in expected.items():
        (text,) = [text for text in texts if f"{name}.safetensors" in text]
        assert reason in text
        assert len(text) < 500
    assert pipe("a curlyqx dog", num_inference_steps=1)
    pipe.unload_library()


@pytest.mark.parametrize("name", ["torn", "empty", "deep", "pickle"])
def test_bad_file_is_one_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_bad_files(tmp_path)
    file = tmp_path / f"{name}.safetensors"
    commands = (["info"], ["convert", str(tmp_path / "out.safetensors")])
    for command, *others in commands:
        assert run(["lora", command, str(file), *others]) == 1
        err = capsys.readouterr().err.strip()
        assert "\n" not in err
        assert file.name in err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("entry", ["[" * 100_000, '{"unet.lora_alpha":' * 50_000, "1" * 6000])
def test_deep_metadata_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    file = write_file(
        tmp_path / "deep.safetensors",
        lora_shapes(DOTTED, ("lora_A", "lora_B")),
        {"lora_adapter_metadata": entry, "ss_tag_frequency": entry},
    )
    assert run(["lora", "info", str(file)]) == 1
    err = capsys.readouterr().err.strip()
    assert "deep.safetensors: metadata lora_adapter_metadata" in err
    assert "\n" not in err
    assert len(err) < 400


def test_huge_metadata_are_shown_shortened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {f"key{index}": "x" for index in range(20_000)} | {"ss_output_name": "n" * 10**6}
    file = write_file(tmp_path / "huge.safetensors", lora_shapes(), metadata)
    assert run(["lora", "info", str(file)]) == 0
    out = capsys.readouterr().out
    assert "19,801 more entries" in out
    assert len(out) < 100_000


# --- fuzz -----------------------------------------------------------------------------------

WORDS = ("lora_unet_", "lycoris_", "unet.", "lora_te_", "text_encoders.", "clip_l.", "down_blocks",
         "input_blocks_", "_", ".", "0", "1", "11", "99999999999", "attentions", "to_q", "to_out",
         "resnets", "in_layers_2", "op", "conv", "mid_block", "text_model", "encoder.layers.",
         "self_attn", "mlp.fc1", "alpha", "lora_up.weight", "lora_A", "weight", "diff",
         "lora_magnitude_vector", "hada_w1_a", "base_model.model.", "٣", "\x00", "é")  # fmt: skip
names = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.lists(st.sampled_from(WORDS), min_size=200, max_size=300).map("".join),
    st.text(max_size=40),
)


@settings(max_examples=400)
@given(names)
def test_any_key_is_understood_or_not(key: str) -> None:
    parsed = parse_key(key)
    if parsed is not None:
        assert parsed.layer
        assert parsed.suffix
        assert key.startswith(parsed.raw_name)
    layer = parse_layer_name(key)
    if layer is not None:
        assert parse_layer_name(layer.kohya_name(None)) == layer
        assert parse_layer_name(layer.diffusers_name) == layer
    assert isinstance(lbw_block(key, "sdxl"), str)


SUFFIXES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "diff", "dora_scale",
            "magnitude", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
            "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
            "w_norm", "diff_b", "lora_A.weight", "lora_B.weight", "oft_diag")  # fmt: skip
LAYERS = (NAME, DOTTED, "lora_unet_conv_in", "lycoris_conv_in", "lora_unet_input_blocks_0_0",
          "lora_unet_elsewhere", "bundle_emb.x", "lora_te2_text_projection")  # fmt: skip
shapes_of_tensors = st.lists(st.integers(0, 4), max_size=4).map(tuple)
files = st.dictionaries(
    st.tuples(st.sampled_from(LAYERS), st.sampled_from(SUFFIXES)).map(".".join),
    st.tuples(
        shapes_of_tensors,
        st.one_of(st.just("F32"), st.sampled_from(sorted(SIZES))),
    ),
    min_size=1,
    max_size=8,
)
metadata_texts = st.dictionaries(
    st.sampled_from(
        ("lora_adapter_metadata", "ss_base_model_version", "lorasmith.gate", "lorasmith.tag",
         "ss_tag_frequency", "modelspec.prediction_type")
    ),
    st.one_of(
        st.text(max_size=20),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=5)),
            lambda inner: st.dictionaries(
                st.sampled_from(("unet.lora_alpha", "unet.alpha_pattern", "to_k", "^a", "(")), inner
            ),
            max_leaves=5,
        ).map(json.dumps),
    ),
    max_size=3,
)  # fmt: skip


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(files, metadata_texts)
def test_any_file_is_read_or_refused(
    tmp_path: Path, content: dict[str, tuple[tuple[int, ...], str]], metadata: dict[str, str]
) -> None:
    path = write_file(
        tmp_path / "any.safetensors",
        {key: shape for key, (shape, _) in content.items()},
        metadata,
        {key: dtype for key, (_, dtype) in content.items()},
    )
    problem = problem_of(path)
    assert "\n" not in problem
    assert not problem or "any.safetensors" in problem


def problem_of(path: Path) -> str:
    """Return what is said about a file; empty if it is read. Other exceptions fail the test."""
    try:
        file = read_lora_file(path)
        summarize_lora(file)
        canonical_layers(file, None)
    except LorasmithError as error:
        return str(error)
    return ""
