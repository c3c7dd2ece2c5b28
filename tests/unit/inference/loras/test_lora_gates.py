"""No tag, no effect: under a closed gate the image is the base model's, bit for bit."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from lorasmith.adapters.files.lora_file import load_lora_file
from lorasmith.adapters.gating.trigger_tokens import mark_end_tokens, mark_tag_tokens
from lorasmith.adapters.injection.inject import attach_lora
from lorasmith.adapters.targeting.selectors import LAYER_KINDS, SDXL_BLOCKS
from lorasmith.core.errors import LorasmithWarning
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.models.load import load_model
from lorasmith.models.text.encode import tokenize
from lorasmith.models.text.prompt_spans import unweighted_prompt

SD_TARGETS = (
    *LAYER_KINDS, "attention+ff", "all-linear+conv", "text-encoder", "attention+text-encoder",
    "down", "mid", "up",
)  # fmt: skip
PROMPTS = ("a red apple", "a curlyqx person, smiling", "a red pear", "a curlyqx cat")
ON = torch.tensor([False, True, False, True])
READS_TEXT = {"targets": "*.attn2.to_[kv]"}
"""Only layers that read text: what a token gate is about."""


@pytest.fixture
def pipe(open_pipeline: Any, tiny_model: Path) -> Iterator[RecordingPipeline]:
    pipe = open_pipeline(tiny_model)
    before = [name for name, _ in pipe.model.unet.named_modules()]
    yield pipe
    pipe.unload_lora()
    pipe.unload_library()
    assert [name for name, _ in pipe.model.unet.named_modules()] == before


def drawn(pipe: RecordingPipeline, prompts: Any = PROMPTS, **keywords: Any) -> torch.Tensor:
    """Return images of one batch before they are rounded, ``[B, 3, 64, 64]``."""
    pipe(
        list(prompts),
        seed=[3 + k for k in range(len(prompts))],
        **{"num_inference_steps": 1, **keywords},
    )
    return pipe.decoded


def changed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Tell which rows differ in any bit."""
    return (first != second).flatten(1).any(dim=1)


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


CASES = [("sd1", targets) for targets in SD_TARGETS] + [
    ("sdxl", targets) for targets in SDXL_BLOCKS
]


@pytest.fixture(scope="session")
def bases(open_pipeline: Any) -> Any:
    """Return what a model draws without any LoRA, drawn once."""
    cache: dict[tuple[Path, torch.dtype], torch.Tensor] = {}

    def base(folder: Path, dtype: torch.dtype) -> torch.Tensor:
        if (folder, dtype) not in cache:
            cache[folder, dtype] = drawn(open_pipeline(folder, dtype), num_inference_steps=1)
        return cache[folder, dtype]

    return base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "targets"), [*CASES, ("sdxl", "attention+text-encoder")])
def test_images_without_the_tag_equal_the_base_models(
    open_pipeline: Any, bases: Any, tiny_model: Path, tiny_sdxl: Path, tmp_path: Path,
    family: str, targets: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    folder = {"sd1": tiny_model, "sdxl": tiny_sdxl}[family]
    pipe, base = open_pipeline(folder, dtype), bases(folder, dtype)
    changes = {"targets": targets, "rank": 3}
    make_lora(pipe.model, tmp_path / "curly.safetensors", changes, 0.4, tag="curlyqx")
    assert pipe.load_library(tmp_path) == ("curlyqx",)
    try:
        mixed = drawn(pipe, num_inference_steps=1)
    finally:
        pipe.unload_library()
    assert torch.equal(mixed[~ON], base[~ON])
    assert torch.equal(changed(mixed, base), ON)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["prompt", "token+end"])
def test_images_without_the_tag_equal_the_base_models_on_a_gpu(
    tiny_sdxl: Path, tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    pipe = RecordingPipeline(load_model(tiny_sdxl).to(torch.device("cuda"), dtype))
    base = drawn(pipe, num_inference_steps=4)
    changes = {"targets": "all-linear+conv", "overrides": [{"targets": "text-encoder"}]}
    gate = {"tag": "curlyqx", "gate": kind}
    file = tmp_path / "curly.safetensors"
    make_lora(load_model(tiny_sdxl), file, changes, 0.1, **gate)
    pipe.load_library(tmp_path)
    for _ in range(2):
        mixed = drawn(pipe, num_inference_steps=4)
        assert torch.equal(mixed[~ON], base[~ON])
        assert torch.equal(changed(mixed, base).cpu(), ON)


def test_batch_without_any_tag_equals_the_base_models(
    pipe: RecordingPipeline, tmp_path: Path
) -> None:
    off = ["a red apple", "a person", ""]
    base = drawn(pipe, off, num_inference_steps=5, sampler="euler_a")
    changes = {"targets": "all-linear+conv", "overrides": [{"targets": "text-encoder"}]}
    make_lora(pipe.model, tmp_path / "curly.safetensors", changes, 0.4, tag="curlyqx")
    pipe.load_library(tmp_path)
    assert torch.equal(
        drawn(pipe, off, num_inference_steps=5, sampler="euler_a"), base
    )  # not even attached
    drawn(pipe)
    assert torch.equal(
        drawn(pipe, off, num_inference_steps=5, sampler="euler_a"), base
    )  # attached by now
    unet = pipe.model.unet
    assert any(".adapters." in name for name, _ in unet.named_parameters())


def test_images_with_the_tag_equal_those_without_a_gate(
    pipe: RecordingPipeline, tmp_path: Path
) -> None:
    changes = {"targets": "attention+text-encoder"}
    file = make_lora(pipe.model, tmp_path / "curly.safetensors", changes, 0.3, tag="curlyqx")
    pipe.load_lora(file)
    with no_warning():
        gated, open_ = drawn(pipe), drawn(pipe, gate=False)
    torch.testing.assert_close(gated[ON], open_[ON], atol=2e-4, rtol=0)
    assert changed(gated, open_)[~ON].all()
    pipe.unload_lora()
    pipe.load_lora(file, gate=False)
    assert torch.equal(drawn(pipe), open_)
    pipe.unload_lora()
    mentioned = [f"{prompt} <lora:curly:1>" for prompt in PROMPTS]
    pipe.lora_dir = tmp_path
    with pytest.warns(LorasmithWarning, match="curly stays off"):
        assert torch.equal(drawn(pipe, mentioned), gated)
    assert torch.equal(drawn(pipe, mentioned, gate=False), open_)


@contextmanager
def keys_of(pipe: RecordingPipeline) -> Iterator[list[torch.Tensor]]:
    """Collect what a cross-attention's keys are in each call, ``[rows, 77, C]``."""
    keys: list[torch.Tensor] = []
    layer = pipe.model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    handle = layer.register_forward_hook(lambda _, __, output: keys.append(output))
    try:
        yield keys
    finally:
        handle.remove()


def first_keys(pipe: RecordingPipeline, prompts: Any, **keywords: Any) -> torch.Tensor:
    with keys_of(pipe) as keys:
        drawn(pipe, prompts, **{"num_inference_steps": 1, **keywords})
    return keys[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_both_guidance_rows_of_an_image_have_the_same_loras(
    pipe: RecordingPipeline, tmp_path: Path, guidance: float
) -> None:
    base = first_keys(pipe, PROMPTS, guidance_scale=guidance)
    file = make_lora(pipe.model, tmp_path / "a.safetensors", READS_TEXT, 0.3, tag="curlyqx")
    pipe.load_lora(file)
    keys = first_keys(pipe, PROMPTS, guidance_scale=guidance)
    assert changed(keys, base).tolist() == ON.tolist() * (1 if guidance == 1.0 else 2)


def test_texts_of_an_image_are_encoded_under_its_gates(
    pipe: RecordingPipeline, tmp_path: Path
) -> None:
    """What cross-attention reads of the negative prompt, too, is that of the image's LoRA."""
    base = first_keys(pipe, PROMPTS, negative_prompt="blurry")
    changes = {"targets": "text-encoder"}
    pipe.load_lora(make_lora(pipe.model, tmp_path / "a.safetensors", changes, 0.3, tag="curlyqx"))
    keys = first_keys(pipe, PROMPTS, negative_prompt="blurry")
    assert changed(keys, base).tolist() == ON.tolist() * 2
    assert torch.equal(keys[1], keys[3])  # the same negative prompt under the same gate


@pytest.mark.parametrize("kind", ["token", "token+end"])
def test_token_gate_changes_keys_at_its_tokens_only(
    pipe: RecordingPipeline, tmp_path: Path, kind: str
) -> None:
    gate = {"tag": "curlyqx", "gate": kind}
    file = make_lora(pipe.model, tmp_path / "a.safetensors", READS_TEXT, 0.3, **gate)
    tokenizer = pipe.model.tokenizer
    for negative in ("a curlyqx thing", "blurry"):
        base = first_keys(pipe, PROMPTS, negative_prompt=negative)
        pipe.load_lora(file)
        keys = first_keys(pipe, PROMPTS, negative_prompt=negative)
        ungated = first_keys(pipe, PROMPTS, negative_prompt=negative, gate=False)
        pipe.unload_lora()
        texts = [negative] * 4 + list(PROMPTS)
        ids = tokenize(tokenizer, texts)
        places = mark_tag_tokens(tokenizer, "curlyqx", [*map(unweighted_prompt, texts)], 1)
        if kind == "token+end":
            places |= mark_end_tokens(tokenizer, ids) & places.any(dim=1, keepdim=True)
        expected = places & ON.repeat(2)[:, None]
        assert expected[4:].any()
        assert torch.equal((keys != base).any(dim=2), expected)
        assert (ungated != base).any(dim=2).all()


def test_two_token_gates_in_one_prompt_write_to_disjoint_tokens(
    pipe: RecordingPipeline, tmp_path: Path
) -> None:
    prompt = ["a cookqz in a hat, curlyqx person"]
    base = first_keys(pipe, prompt)
    files = {
        tag: make_lora(
            pipe.model, tmp_path / f"{tag}.safetensors", READS_TEXT, 0.3, k, tag=tag, gate="token"
        )
        for k, tag in enumerate(("curlyqx", "cookqz"))
    }
    single = {}
    for tag, file in files.items():
        pipe.load_lora(file)
        single[tag] = first_keys(pipe, prompt)
        pipe.unload_lora()
    pipe.load_library(tmp_path)
    drawn(pipe, prompt, num_inference_steps=1)  # from now on they are in the model
    keys_with_both = first_keys(pipe, prompt)
    moved = {tag: (keys != base).any(dim=2) for tag, keys in single.items()}
    assert not (moved["curlyqx"] & moved["cookqz"]).any()
    for tag, keys in single.items():
        assert moved[tag].any()
        assert torch.equal(keys_with_both[moved[tag]], keys[moved[tag]])
    neither = ~(moved["curlyqx"] | moved["cookqz"])
    assert torch.equal(keys_with_both[neither], base[neither])


def test_layers_that_read_no_text_follow_the_prompt_under_a_token_gate(
    pipe: RecordingPipeline, tmp_path: Path
) -> None:
    base = drawn(pipe)
    changes, gate = {"targets": "self-attention+conv"}, {"tag": "curlyqx", "gate": "token"}
    pipe.load_lora(make_lora(pipe.model, tmp_path / "a.safetensors", changes, 0.3, **gate))
    assert torch.equal(changed(drawn(pipe), base), ON)


# --- warnings ---------------------------------------------------------------------------------


@pytest.fixture
def curly(pipe: RecordingPipeline, tmp_path: Path) -> Path:
    changes = {"targets": "mid"}
    return make_lora(pipe.model, tmp_path / "curly.safetensors", changes, 0.3, tag="curlyqx")


def stays_off(pipe: RecordingPipeline, *prompts: str, **keywords: Any) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn(pipe, prompts, **{"num_inference_steps": 1, **keywords})
    expected = "LoRA curly stays off: its tag 'curlyqx' is not in the prompt; write it there or use"
    messages = [
        str(warning.message) for warning in caught if issubclass(warning.category, LorasmithWarning)
    ]
    assert all(expected in message for message in messages)
    return len(messages)


def test_requested_lora_that_stays_off_warns_once(pipe: RecordingPipeline, curly: Path) -> None:
    pipe.lora_dir = curly.parent
    off, on = "a person <lora:curly>", "a curlyqx person <lora:curly>"
    assert stays_off(pipe, off, off, on) == 1
    assert stays_off(pipe, on, "a person") == 0
    assert stays_off(pipe, off, gate=False) == 0
    assert stays_off(pipe, "a person <lora:curly:0>") == 0
    pipe.load_lora("curly")
    assert stays_off(pipe, "a person") == 1
    assert stays_off(pipe, "a person", "a curlyqx person") == 0


def test_parameters_hold_the_active_loras(pipe: RecordingPipeline, curly: Path) -> None:
    pipe.load_library(curly.parent)
    prompts = ["a person", "a curlyqx person"]
    parameters = [image.info[PARAMETERS_KEY] for image in pipe(prompts, num_inference_steps=1)]
    assert [text.splitlines()[0] for text in parameters] == [
        "a person", "a curlyqx person <lora:curly:1>",
    ]  # fmt: skip
    assert not any("LoRA gates" in text for text in parameters)
    pipe.load_lora(curly, 0.5)
    parameters = [
        image.info[PARAMETERS_KEY] for image in pipe(prompts, num_inference_steps=1, gate=False)
    ]
    assert [text.splitlines()[0] for text in parameters] == [
        "a person <lora:curly:0.5>", "a curlyqx person <lora:curly:0.5>",
    ]  # fmt: skip
    assert all("LoRA gates: off" in text for text in parameters)


def test_external_adapters_are_gated_while_in_use(pipe: RecordingPipeline, curly: Path) -> None:
    base = drawn(pipe)
    attached = attach_lora(pipe.model, load_lora_file(curly))
    try:
        assert changed(drawn(pipe), base).all()  # the pipeline does not know of them
        with pipe.using_adapters(attached), no_warning():
            assert torch.equal(changed(drawn(pipe), base), ON)
            assert not drawn(pipe, ["a person"], num_inference_steps=1).isnan().any()
        with pipe.using_adapters(attached, gate=False):
            assert changed(drawn(pipe), base).all()
        assert changed(drawn(pipe), base).all()  # as it was before
    finally:
        attached.detach()


def test_failed_call_leaves_no_gate_closed(pipe: RecordingPipeline, curly: Path) -> None:
    pipe.load_lora(curly)

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(["a person", "a curlyqx person"], num_inference_steps=2, progress=fail)
    base_off = drawn(pipe, gate=False)
    with pytest.warns(LorasmithWarning, match="stays off"):
        drawn(pipe, ["a person"])
    assert torch.equal(drawn(pipe, gate=False), base_off)
