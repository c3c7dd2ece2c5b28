import pytest
import torch

from lorasmith.core.errors import ConfigError
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.options import (
    SamplingKeywords,
    SamplingOptions,
    parse_optional_size,
    parse_size,
    resolve_seed,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", -5),
        ("num_inference_steps", 1001),
        ("num_inference_steps", 2.5),
        ("num_inference_steps", True),
        ("guidance_scale", -0.1),
        ("guidance_scale", float("nan")),
        ("guidance_scale", "5"),
        ("guidance_rescale", 1.5),
        ("batch_size", 0),
        ("clip_skip", 0),
        ("width", "128"),
        ("width", -8),
        ("height", 0),
        ("height", 99999),
    ],
)
def test_value_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        SamplingOptions(**{field: value})


def test_unknown_option_is_refused_with_close_names() -> None:
    with pytest.raises(ConfigError, match="'num_inference_step'; did you mean num_inference_steps"):
        SamplingOptions.from_keywords({"num_inference_step": 3})


def test_keywords_are_the_fields() -> None:
    assert set(SamplingKeywords.__annotations__) == set(SamplingOptions.__dataclass_fields__)


@pytest.mark.parametrize("text", ["128x64", " 128 X 64", "128×64"])
def test_size_is_parsed_from_text(text: str) -> None:
    assert parse_optional_size(text) == parse_size(text) == (128, 64)
    assert parse_optional_size(None) == (None, None)


@pytest.mark.parametrize("text", ["128", "128x-8", "0x8", "99999x8"])
def test_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^size: "):
        parse_size(text)


def test_missing_sides_are_the_models() -> None:
    default = 512, 512
    assert SamplingOptions().resolve_size(default, 8) == (512, 512)
    assert SamplingOptions(width=128).resolve_size(default, 8) == (128, 512)
    assert SamplingOptions(width=128, height=64).resolve_size(default, 8) == (128, 64)


def test_size_between_latents_is_rounded_to_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"100x130 is not in steps of 8 pixels; use 104x128"):
        SamplingOptions(width=100, height=130).resolve_size((512, 512), 8)
    with pytest.raises(ConfigError, match="use 8x8"):
        SamplingOptions(width=1, height=3).resolve_size((512, 512), 8)


def test_samplers_are_named_as_in_the_registry() -> None:
    assert SamplingOptions(sampler="DPM++ 2M Karras").sampler == "dpmpp_2m_karras"
    with pytest.raises(ConfigError, match=r"there is no sampler 'eulr'; did you mean 'euler'"):
        SamplingOptions(sampler="eulr")


def test_seed_of_minus_1_is_random() -> None:
    seeds = {resolve_seed(-1) for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)
    first, second = make_image_jobs(["a"], -1, 2)
    assert second.seed == first.seed + 1


def test_generators_replace_seeds() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    jobs = make_image_jobs(["a"], 0, 2, generator=generators)
    assert [job.seed for job in jobs] == [3, 9]
    assert [job.generator for job in jobs] == generators
    with pytest.raises(ConfigError, match="generator: 1 for 2 images; give a list"):
        make_image_jobs(["a"], 0, 2, generator=generators[0])


def test_images_follow_the_order_of_prompts() -> None:
    jobs = make_image_jobs(["a", "b <lora:x>"], 7, 2)
    assert [(j.index, j.prompt.text, j.seed) for j in jobs] == [
        (0, "a", 7),
        (1, "a", 8),
        (2, "b", 9),
        (3, "b", 10),
    ]
    assert [job.seed for job in make_image_jobs(["a", "b"], [5, 5], 1)] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0, 1), "^prompt: "),
        ((["a"], 0, 0), "^num_images_per_prompt: "),
        ((["a"], -2, 1), "^seed: "),
        ((["a"], 2**63 - 1, 2), "^seed: "),
        ((["a"], [1, 2], 1), "^seed: 2 seeds for 1 images"),
    ],
)
def test_bad_jobs_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_image_jobs(*arguments)
