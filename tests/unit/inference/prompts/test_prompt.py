import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError
from lorasmith.inference.prompts.parse_prompt import (
    LoraRequest,
    check_negative_prompt,
    parse_prompt,
)

TWELVE = "1,0,0,0,0,1,1,1,0.5,0,0,-1"


@pytest.mark.parametrize(
    ("source", "text", "loras"),
    [
        ("a red apple", "a red apple", ()),
        ("  two  spaces stay ", "  two  spaces stay ", ()),
        ("a cat <lora:x>", "a cat", (LoraRequest("x", 1.0),)),
        ("a cat <lora:x:0.5> in a hat", "a cat in a hat", (LoraRequest("x", 0.5),)),
        ("<lora:a:-1><lora:b:2>", "", (LoraRequest("a", -1.0), LoraRequest("b", 2.0))),
        ("<lora:a:0.5> x <lora:a:0.25>", "x", (LoraRequest("a", 0.75),)),
        ("x <LoRA: my file : .5 >", "x", (LoraRequest("my file", 0.5),)),
        ("3 < 4 and <b>", "3 < 4 and <b>", ()),
        ("x <lora:a:0.6:0.8>", "x", (LoraRequest("a", 0.6, 0.8),)),
        ("x <lora:a:te=0.6:unet=0.8>", "x", (LoraRequest("a", 0.6, 0.8),)),
        ("x <lora:a:unet=0.8:te=0.6>", "x", (LoraRequest("a", 0.6, 0.8),)),
        ("x <lora:a:unet=0.8>", "x", (LoraRequest("a", 1.0, 0.8),)),
        ("x <lora:a:te=0.6>", "x", (LoraRequest("a", 0.6),)),
        ("x <lora:a:0.6:0.6>", "x", (LoraRequest("a", 0.6),)),
        ("x <lora:a:0.6:UNET = 0.8>", "x", (LoraRequest("a", 0.6, 0.8),)),
        ("x <lora:a:1:lbw=OUTD>", "x", (LoraRequest("a", lbw="OUTD"),)),
        (f"x <lora:a:lbw={TWELVE}:stop=10>", "x", (LoraRequest("a", lbw=TWELVE, stop=10),)),
        ("x <lora:a:start=3>", "x", (LoraRequest("a", start=3),)),
        ("x <lora:a:step=5-10>", "x", (LoraRequest("a", start=5, stop=10),)),
        ("<lora:a:0.5:1> x <lora:a:0.5:0.25>", "x", (LoraRequest("a", 1.0, 1.25),)),
        (
            "<lora:a:0.5> x <lora:a:0.25:stop=2>",
            "x",
            (LoraRequest("a", 0.5), LoraRequest("a", 0.25, stop=2)),
        ),
        ("(a <lora:x> b:1.5)", "a b", (LoraRequest("x"),)),
    ],
)
def test_mentions_are_removed_from_the_text(
    source: str, text: str, loras: tuple[LoraRequest, ...]
) -> None:
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
        ("<lora:x:1:2:3>", "column 13: too many parts"),
        ("a <lora:x:te=1:te=2>", "column 16: te is given twice"),
        ("<lora:x:1:te=2>", "column 11: te is given twice"),
        ("a <lora> b", "column 3: '<lora>' is not known here; write <lora:NAME>"),
        ("a <lyco:x:1> b", "column 3: '<lyco:x:1>' is not known here; write <lora:NAME> or <lora:"),
        ("(a <HyperNet:x:1> b)", "column 4: '<HyperNet:x:1>' is not known"),
        ("<lora:x:dyn=4>", "column 9: 'dyn' is no setting of a LoRA; there are te, unet"),
        ("<lora:x:uent=1>", "did you mean unet?"),
        ("<lora:x:lbw=OUTD:1>", "column 18: numbers without a name go before lbw="),
        ("<lora:x:lbw=OUTX>", "column 9: block weights: there is no preset 'OUTX'"),
        ("<lora:x:lbw=1,2>", "2 numbers; SD takes 17 or 26, SDXL 12 or 20"),
        ("<lora:x:start=0>", "'0' is no step"),
        ("<lora:x:stop=1.5>", "'1.5' is no step"),
        ("<lora:x:start=4:stop=3>", "column 17: step 3 comes before step 4"),
        ("<lora:x:step=5>", "step=5 is not FIRST-LAST"),
        ("<lora:x:step=5-4>", "step 4 comes before step 5"),
        ("<lora:x:step=2-5:stop=4>", "leave one out"),
        ("a <lora:x:1", "not closed"),
        ("caf\udce9", "not valid UTF-8"),
    ],
)
def test_malformed_mention_is_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match="prompt") as caught:
        parse_prompt(source)
    assert message in str(caught.value)
    assert "\0" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(source: str) -> None:
    try:
        prompt = parse_prompt(source)
    except ConfigError:
        return
    assert "<lora:" not in prompt.text.lower()
    assert all(math.isfinite(lora.weight) for lora in prompt.loras)


MENTIONS = st.builds(
    LoraRequest,
    st.sampled_from(["ink", "my file", "v1.5"]),
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([None, 0.25, 3.0]),
    st.sampled_from(["", "OUTD", TWELVE]),
    st.integers(1, 5),
    st.sampled_from([None, 5, 12]),
)


@given(
    st.lists(
        MENTIONS, unique_by=lambda request: (request.name, request.lbw, request.start, request.stop)
    )
)
def test_request_is_read_back_as_written(mentions: list[LoraRequest]) -> None:
    assert parse_prompt(" ".join(map(str, mentions))).loras == tuple(mentions)


@pytest.mark.parametrize(("step", "on"), [(1, False), (2, True), (4, True), (5, False)])
def test_step_range_includes_both_ends(step: int, on: bool) -> None:
    assert parse_prompt("<lora:x:step=2-4>").loras[0].is_active_at(step) is on


def test_negative_prompt_must_not_mention_loras() -> None:
    check_negative_prompt("blurry, <3")
    with pytest.raises(ConfigError, match="negative_prompt, column 8: "):
        check_negative_prompt("blurry <lora:x:1>")
