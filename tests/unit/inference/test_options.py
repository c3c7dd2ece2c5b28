import pytest

from lorasmith.core.errors import ConfigError
from lorasmith.inference.image_jobs import make_image_jobs
from lorasmith.inference.options import SamplingKeywords, SamplingOptions, parse_size


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
        ("size", "128"),
        ("size", "128x-8"),
        ("size", (0, 8)),
        ("size", (99999, 8)),
        ("size", 128),
        ("sampler", "eulr"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}( .--[a-z]+.)?: "):
        SamplingOptions(**{field: value})


def test_an_unknown_option_gets_close_matches() -> None:
    with pytest.raises(ConfigError, match="'num_inference_step'; did you mean num_inference_steps"):
        SamplingOptions.of({"num_inference_step": 3})


def test_the_keywords_are_the_fields() -> None:
    assert set(SamplingKeywords.__annotations__) == set(SamplingOptions.__dataclass_fields__)


@pytest.mark.parametrize("text", ["128x64", " 128 X 64", "128×64", (128, 64)])
def test_sizes(text: object) -> None:
    assert parse_size(text) == (128, 64)
    assert SamplingOptions(size=text).size_for(512, 8) == (128, 64)
    assert SamplingOptions().size_for(512, 8) == (512, 512)


def test_a_size_between_latents_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"100x130 is not in steps of 8 pixels; use 104x128"):
        SamplingOptions(size="100x130").size_for(512, 8)
    with pytest.raises(ConfigError, match="use 8x8"):
        SamplingOptions(size="1x3").size_for(512, 8)


def test_pictures_belong_to_prompts_in_order() -> None:
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
        ((["a"], 0, 0), "^n: "),
        ((["a"], -1, 1), "^seed: "),
        ((["a"], 2**63 - 1, 2), "^seed: "),
        ((["a"], [1, 2], 1), "^seed: 2 seeds for 1 pictures"),
    ],
)
def test_bad_calls_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_image_jobs(*arguments)
