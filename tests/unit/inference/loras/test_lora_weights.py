"""Block weights, strengths and step ranges of LoRAs, from prompts and from Python."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.doubles import RecordingPipeline
from helpers.lora_files import make_lora
from helpers.tiny_models import open_model
from lorasmith.adapters.gating.trigger_tokens import mark_tag_tokens
from lorasmith.core.errors import ConfigError, LorasmithWarning
from lorasmith.inference.denoise import CFGDenoiser
from lorasmith.inference.outputs.save import PARAMETERS_KEY
from lorasmith.models.text.long_prompts import prompt_token_ids
from lorasmith.models.text.prompt_spans import unweighted_prompt

ALL = {"targets": "attention", "overrides": [{"targets": "text-encoder"}]}
SEVENTEEN = "0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"
"""The middle block only."""


@pytest.fixture(scope="session")
def pipe_with_loras(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> RecordingPipeline:
    folder = tmp_path_factory.mktemp("loras")
    pipe = RecordingPipeline(open_model(tiny_model), folder)
    make_lora(pipe.model, folder / "ink.safetensors", ALL, 0.3, tag="", gate="none")
    make_lora(pipe.model, folder / "mid.safetensors", {"targets": "mid"}, 0.3, gate="none")
    return pipe


@pytest.fixture
def pipe(pipe_with_loras: RecordingPipeline) -> Iterator[RecordingPipeline]:
    yield pipe_with_loras
    pipe_with_loras.unload_lora()


def drawn(pipe: RecordingPipeline, prompt: str, **keywords: Any) -> torch.Tensor:
    pipe(prompt, **{"num_inference_steps": 3, "seed": 3, "guidance_scale": 4.0, **keywords})
    return pipe.decoded


def test_text_encoders_and_unet_have_separate_weights(pipe: RecordingPipeline) -> None:
    base, with_lora = drawn(pipe, "a pear"), drawn(pipe, "a pear <lora:ink:0.5>")
    text, unet = drawn(pipe, "a pear <lora:ink:0.5:0>"), drawn(pipe, "a pear <lora:ink:0:0.5>")
    assert torch.equal(drawn(pipe, "a pear <lora:ink:te=0:unet=0>"), base)
    assert torch.equal(drawn(pipe, "a pear <lora:ink:0.5:0.5>"), with_lora)
    different = [base, with_lora, text, unet]
    for index, first in enumerate(different):
        assert not any(torch.equal(first, second) for second in different[:index])
    pipe.load_lora("ink", 0.0, unet_weight=0.5)
    assert torch.equal(drawn(pipe, "a pear"), unet)


def test_block_weights_choose_blocks(pipe: RecordingPipeline) -> None:
    base, middle = drawn(pipe, "a pear"), drawn(pipe, "a pear <lora:mid:0.5>")
    actual = drawn(pipe, f"a pear <lora:mid:0.5:lbw={SEVENTEEN}>")
    torch.testing.assert_close(actual, middle)
    assert not torch.equal(actual, base)
    assert torch.equal(drawn(pipe, "a pear <lora:mid:0.5:lbw=OUTALL>"), base)
    halves = drawn(pipe, "a pear <lora:mid:lbw=ALL0.5>")
    torch.testing.assert_close(halves, middle)
    pipe.load_lora("mid", 0.5, lbw="ALL")
    torch.testing.assert_close(drawn(pipe, "a pear"), middle)
    with pytest.raises(
        ConfigError, match=r"LoRA mid: block weights .* length for the other family"
    ):
        drawn(pipe, "a pear <lora:mid:lbw=1,1,1,1,1,1,1,1,1,1,1,1>")


@pytest.mark.parametrize(
    ("written", "on"),
    [("start=2", [2, 3]), ("stop=2", [1, 2]), ("step=2-2", [2]), ("stop=9", [1, 2, 3])],
)
def test_lora_is_active_in_its_steps_only(
    pipe: RecordingPipeline, monkeypatch: pytest.MonkeyPatch, written: str, on: list[int]
) -> None:
    """Every step's texts and prediction are those of a call with the LoRA, or of one without."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = CFGDenoiser.__call__

    def call(self: CFGDenoiser, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        # The same latents in every call, so that steps can be compared.
        calls.append((self.prompt_embeds, original(self, torch.ones_like(latents), timestep)))
        return calls[-1][1]

    monkeypatch.setattr(CFGDenoiser, "__call__", call)
    for prompt in ("a pear", "a pear <lora:ink:0.5>", f"a pear <lora:ink:0.5:{written}>"):
        drawn(pipe, prompt)
    without, with_it, actual = calls[:3], calls[3:6], calls[6:]
    for step in (1, 2, 3):
        expected = (with_it if step in on else without)[step - 1]
        second = (without if step in on else with_it)[step - 1]
        for index in (0, 1):
            torch.testing.assert_close(actual[step - 1][index], expected[index])
            assert not torch.allclose(actual[step - 1][index], second[index])


def test_lora_step_ranges_hold_per_image_of_a_batch(pipe: RecordingPipeline) -> None:
    prompts = ["a pear", "a pear <lora:ink:0.5:stop=1>", "a pear <lora:ink:0.5:start=2>"]
    base = drawn(pipe, ["a pear"] * 3, seed=[3, 3, 3])  # type: ignore[arg-type]
    batched = drawn(pipe, prompts, seed=[3, 3, 3])  # type: ignore[arg-type]
    assert torch.equal(batched[0], base[0])
    for index in (1, 2):
        single = drawn(pipe, prompts[index])
        torch.testing.assert_close(batched[index], single[0], atol=1e-4, rtol=0)
        assert not torch.equal(batched[index], base[index])


def test_start_after_the_last_step_warns(pipe: RecordingPipeline) -> None:
    with pytest.warns(LorasmithWarning, match="ink stays off: it is to start at step 9 and there"):
        late = drawn(pipe, "a pear <lora:ink:start=9>")
    assert torch.equal(late, drawn(pipe, "a pear"))


def test_parameters_hold_the_full_lora_request(pipe: RecordingPipeline) -> None:
    pipe.load_lora("ink", 0.5, unet_weight=1.0, lbw="MIDD", start=2, stop=3)
    (image,) = pipe("a pear", num_inference_steps=3)
    written = "<lora:ink:0.5:1:lbw=MIDD:start=2:stop=3>"
    assert image.info[PARAMETERS_KEY].splitlines()[0] == f"a pear {written}"
    pipe.unload_lora()
    repeated = pipe(f"a pear {written}", num_inference_steps=3)[0]
    assert repeated.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "changes",
    [{"weight": "x"}, {"unet_weight": 11}, {"lbw": "NOPE"}, {"start": 0}, {"start": 3, "stop": 2}],
)
def test_impossible_weights_are_refused(pipe: RecordingPipeline, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        pipe.load_lora("ink", **changes)
    assert pipe.loaded_loras == ()


def test_tag_across_two_chunks_opens_both_gates(pipe: RecordingPipeline, tmp_path: Path) -> None:
    words = len(pipe.model.tokenizer("curlyqx", add_special_tokens=False)["input_ids"])
    text = "a " * (75 - words) + "curlyqx person"
    ids = prompt_token_ids(pipe.model.tokenizer, unweighted_prompt(text))
    prompt = unweighted_prompt(text)
    places = mark_tag_tokens(pipe.model.tokenizer, "curlyqx person", [prompt], 2)[0]
    assert len(ids) == 154
    assert places[:77].sum() == words
    assert places[77:].any()
    changes, gate = {"targets": "*.attn2.to_[kv]"}, {"tag": "curlyqx person", "gate": "token"}
    pipe.load_lora(make_lora(pipe.model, tmp_path / "a.safetensors", changes, 0.3, **gate))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the prompt has")
        gated, ungated = (
            drawn(pipe, text, num_inference_steps=1),
            drawn(pipe, text, num_inference_steps=1, gate=False),
        )
        pipe.unload_lora()
        base = drawn(pipe, text, num_inference_steps=1)
    assert not torch.equal(gated, base)
    assert not torch.equal(gated, ungated)


def test_empty_negative_prompt_of_sdxl_matches_diffusers(tiny_sdxl: Path) -> None:
    from diffusers import DiffusionPipeline

    theirs = DiffusionPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    expected = theirs(
        "a red apple", latents=noise, width=64, height=64, num_inference_steps=3,
        guidance_scale=5.0, output_type="pt",
    ).images  # fmt: skip
    pipe = RecordingPipeline(open_model(tiny_sdxl))
    actual = drawn(pipe, "a red apple", guidance_scale=5.0)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(
        actual, drawn(pipe, "a red apple", guidance_scale=5.0, negative_prompt="x")
    )
