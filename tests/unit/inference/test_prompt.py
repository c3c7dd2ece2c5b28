import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompt import LoraMention, check_negative, parse_prompt


@pytest.mark.parametrize(
    ("source", "text", "loras"),
    [
        ("a red apple", "a red apple", ()),
        ("  two  spaces stay ", "  two  spaces stay ", ()),
        ("a cat <lora:x>", "a cat", (LoraMention("x", 1.0),)),
        ("a cat <lora:x:0.5> in a hat", "a cat in a hat", (LoraMention("x", 0.5),)),
        ("<lora:a:-1><lora:b:2>", "", (LoraMention("a", -1.0), LoraMention("b", 2.0))),
        ("<lora:a:0.5> x <lora:a:0.25>", "x", (LoraMention("a", 0.75),)),
        ("x <LoRA: my file : .5 >", "x", (LoraMention("my file", 0.5),)),
        ("3 < 4 and <b>", "3 < 4 and <b>", ()),
    ],
)
def test_mentions_are_taken_out(source: str, text: str, loras: tuple[LoraMention, ...]) -> None:
    prompt = parse_prompt(source)
    assert (prompt.source, prompt.text, prompt.loras) == (source, text, loras)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<lora:../../x:1>", "plain file name"),
        ("<lora:/etc/passwd:1>", "plain file name"),
        ("<lora:a\\b:1>", "plain file name"),
        ("<lora:a\0b:1>", "plain file name"),
        ("<lora:..:1>", "plain file name"),
        ("<lora:x:nan>", "weight nan"),
        ("<lora:x:inf>", "weight inf"),
        ("<lora:x:1e9>", "weight 1e9"),
        ("<lora:x:-10.5>", "weight -10.5"),
        ("<lora:x:9> <lora:x:9>", "all mentions together: weight 18.0"),
        ("<lora:x:strong>", "'strong' is not a number"),
        ("<lora:x:>", "'' is not a number"),
        ("<lora:>", "no name"),
        ("<lora::1>", "no name"),
        ("<lora:x:1:2:3>", "too many parts"),
        ("a <lora:x:1", "not closed"),
        ("caf\udce9", "not valid UTF-8"),
    ],
)
def test_bad_mentions_are_named(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match="prompt") as caught:
        parse_prompt(source)
    assert message in str(caught.value)
    assert "\0" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(source: str) -> None:
    try:
        prompt = parse_prompt(source)
    except ConfigError:
        return
    assert "<lora:" not in prompt.text.lower()
    assert all(math.isfinite(lora.weight) for lora in prompt.loras)


def test_a_negative_prompt_has_no_loras() -> None:
    check_negative("blurry, <3")
    with pytest.raises(ConfigError, match="negative"):
        check_negative("blurry <lora:x:1>")
