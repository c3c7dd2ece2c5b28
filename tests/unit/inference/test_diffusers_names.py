"""Names of diffusers that a pipeline does not have say what to use."""

import inspect
import re

import pytest

import lorasmith
from lorasmith.core.errors import ConfigError
from lorasmith.inference.diffusers_names import ANSWERS, KEYWORD_ANSWERS
from lorasmith.inference.options import SamplingOptions
from lorasmith.inference.pipeline import Pipeline


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("load_lora_weights", "use pipe.load_lora(path_or_name, weight=1.0)"),
        ("set_adapters", 'pipe.load_lora("inkmono", weight=0.8)'),
        ("to", "lorasmith.load_pipeline(path, device=..., dtype=...)"),
        ("unet", "use pipe.model.unet"),
        ("scheduler", 'sampler="dpmpp_2m_karras"'),
    ],
)
def test_attribute_of_diffusers_says_what_stands_for_it(
    pipe: Pipeline, name: str, answer: str
) -> None:
    with pytest.raises(AttributeError, match=rf"^Pipeline has no attribute '{name}'; ") as caught:
        getattr(pipe, name)
    assert answer in str(caught.value)


def test_attribute_of_diffusers_cannot_be_set(pipe: Pipeline) -> None:
    with pytest.raises(AttributeError, match=r"^Pipeline has no attribute 'scheduler'; a call "):
        pipe.scheduler = object()
    pipe.strict = pipe.strict  # its own attributes can be


def test_class_method_of_diffusers_says_how_a_model_is_opened() -> None:
    with pytest.raises(AttributeError, match=r"class Pipeline has .*lorasmith\.load_pipeline\("):
        _ = lorasmith.Pipeline.from_pretrained


def test_other_missing_attributes_stay_plain(pipe: Pipeline) -> None:
    assert not hasattr(pipe, "no_such_thing")
    with pytest.raises(AttributeError, match=r"^Pipeline has no attribute 'no_such_thing'$"):
        _ = pipe.no_such_thing


def test_answers_name_what_exists(pipe: Pipeline) -> None:
    texts = " ".join([*ANSWERS.values(), *KEYWORD_ANSWERS.values()])
    for name in re.findall(r"\bpipe\.([a-z_]+)", texts):
        assert hasattr(pipe, name), name
    for name in re.findall(r"\bpipe\.model\.([a-z_0-9]+)", texts):
        assert hasattr(pipe.model, name), name
    for name in re.findall(r"\blorasmith\.([a-z_]+)\(", texts):
        assert callable(getattr(lorasmith, name)), name
    assert not any(hasattr(pipe, name) for name in ANSWERS)


def test_unknown_keyword_of_a_call_says_what_stands_for_it() -> None:
    keywords = inspect.signature(Pipeline.__call__).parameters
    assert not set(KEYWORD_ANSWERS) & (set(keywords) | set(SamplingOptions.__dataclass_fields__))
    with pytest.raises(ConfigError, match="unknown option 'steps'; use num_inference_steps"):
        SamplingOptions.from_keywords({"steps": 3})  # type: ignore[typeddict-unknown-key]
