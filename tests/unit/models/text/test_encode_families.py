"""Text conditioning of each family equals that of diffusers' pipelines."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.encode import encode_captions
from helpers.tiny_models import open_model
from lorasmith.core.errors import ConfigError, WeightsError
from lorasmith.models.families.family import detect_family
from lorasmith.models.files.open import resolve_model_path
from lorasmith.models.load import load_model
from lorasmith.models.model import Model
from lorasmith.models.text.encode import TokenIds, encode_tokens, tokenize_texts

TEXTS = ["a red apple on a table, noto style", "", "x " * 90]
FAMILIES = {"sd1": "tiny_model", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    results: Path = request.getfixturevalue(FAMILIES[request.param])
    return results


@pytest.fixture
def model(folder: Path) -> Model:
    return open_model(folder)


@torch.no_grad()
def compare_with_diffusers(folder: Path, model: Model, ours: int, theirs: int | None) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    expected = pipe.encode_prompt(
        TEXTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
        clip_skip=theirs,
    )  # fmt: skip

    results = encode_captions(model, TEXTS, ours, warn=False)

    context = torch.stack([result.context for result in results])
    torch.testing.assert_close(context, expected[0], rtol=1e-5, atol=1e-5)
    assert context.shape == (3, 77, model.unet.config.cross_attention_dim)
    summaries = [result.pooled for result in results]
    if model.text_encoder_2 is None:
        assert summaries == [None] * 3
    else:
        torch.testing.assert_close(torch.stack(summaries), expected[2], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(summaries[0], summaries[1], atol=1e-3)


def test_conditioning_equals_diffusers(folder: Path, model: Model) -> None:
    compare_with_diffusers(folder, model, ours=1, theirs=None)


def test_sdxl_clip_skip_equals_diffusers(tiny_sdxl: Path) -> None:
    # diffusers counts the layers that are left out. Its SD 1.x and 2.x pipelines look for a level
    # that the text encoders of transformers 5 no longer have; those are compared in test_text.py.
    compare_with_diffusers(tiny_sdxl, load_model(tiny_sdxl), ours=2, theirs=1)


def test_texts_stay_in_their_order(model: Model) -> None:
    texts = [f"picture {i}" for i in range(40)]
    batched = encode_captions(model, texts)
    for i in (0, 31, 32, 39):
        (single,) = encode_captions(model, [texts[i]])
        torch.testing.assert_close(batched[i].context, single.context)


def test_second_tokenizer_pads_differently(tiny_sdxl: Path) -> None:
    model = load_model(tiny_sdxl)
    first, second = tokenize_texts(model, ["apple"])
    assert second is not None
    assert first[0, -1] == model.tokenizer.eos_token_id
    assert second[0, -1] == model.tokenizer_2.pad_token_id != model.tokenizer.eos_token_id


def test_gradients_reach_both_text_encoders(tiny_sdxl: Path) -> None:
    model = load_model(tiny_sdxl)
    results = encode_tokens(model, tokenize_texts(model, ["a red apple"]))
    (results.context.sum() + results.pooled.sum()).backward()
    for encoder in model.text_encoders:
        weight = next(p for n, p in encoder.named_parameters() if n.endswith("0.mlp.fc1.weight"))
        assert weight.grad is not None
        assert weight.grad.any()


def test_sdxl_clip_skip_beyond_the_layers_is_refused(tiny_sdxl: Path) -> None:
    model = load_model(tiny_sdxl)
    ids = torch.zeros(1, 77, dtype=torch.int64)
    for skip in (0, 3):
        with pytest.raises(ConfigError, match="clip skip must be 1 to 2"):
            encode_tokens(model, TokenIds(ids, ids), skip)


def test_families_are_detected(tiny_model: Path, tiny_sd2: Path, tiny_sdxl: Path) -> None:
    for folder, family in ((tiny_model, "sd1"), (tiny_sd2, "sd2"), (tiny_sdxl, "sdxl")):
        assert detect_family(load_model(folder)).name == family
    config = SimpleNamespace(use_linear_projection=False, addition_embed_type="image")
    other = SimpleNamespace(path=Path("m"), unet=SimpleNamespace(config=config))
    with pytest.raises(WeightsError, match="model m: its U-Net needs image inputs"):
        detect_family(other)


def test_incomplete_sdxl_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sdxl, folder)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(WeightsError, match="missing part tokenizer_2"):
        resolve_model_path(folder)


def test_both_text_encoders_change_their_dtype(tiny_sdxl: Path) -> None:
    model = load_model(tiny_sdxl).to(torch.device("cpu"), torch.bfloat16)
    assert [encoder.dtype for encoder in model.text_encoders] == [torch.bfloat16] * 2
    assert not any(p.requires_grad for result in model.text_encoders for p in result.parameters())
