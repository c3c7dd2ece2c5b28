import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError, LorasmithError, WeightsError
from lorasmith.inference.prompt import LoraMention, check_negative, find_lora, parse_prompt


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


@given(st.text(max_size=30))
def test_a_mention_never_leads_out_of_the_folder(tmp_path_factory, name: str) -> None:
    folder = tmp_path_factory.mktemp("l")
    (folder / "x.safetensors").touch()
    try:
        path = find_lora(name, folder)
    except LorasmithError:
        return
    assert path == folder / "x.safetensors"


def test_a_negative_prompt_has_no_loras() -> None:
    check_negative("blurry, <3")
    with pytest.raises(ConfigError, match="negative"):
        check_negative("blurry <lora:x:1>")


def test_find_lora(tmp_path: Path) -> None:
    (tmp_path / "noto.safetensors").touch()
    (tmp_path / "v1.5 style.safetensors").touch()
    (tmp_path / "noto.txt").touch()
    assert find_lora("noto", tmp_path) == tmp_path / "noto.safetensors"
    assert find_lora("noto.safetensors", tmp_path) == tmp_path / "noto.safetensors"
    assert find_lora("v1.5 style", tmp_path) == tmp_path / "v1.5 style.safetensors"


def test_an_unknown_lora_gets_close_matches(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder"):
        find_lora("x", tmp_path / "absent")
    with pytest.raises(WeightsError, match="it has no LoRA files"):
        find_lora("x", tmp_path)
    (tmp_path / "apples.safetensors").touch()
    with pytest.raises(WeightsError, match="did you mean apples"):
        find_lora("aples", tmp_path)
    with pytest.raises(WeightsError, match="has 1 LoRA files"):
        find_lora("zzz", tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (tmp_path / "secret.safetensors").touch()
    (folder / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(WeightsError, match="link out of"):
        find_lora("x", folder)
    (folder / "inside.safetensors").touch()
    (folder / "y.safetensors").symlink_to("inside.safetensors")
    assert find_lora("y", folder).name == "y.safetensors"
    (folder / "dangling.safetensors").symlink_to("nowhere.safetensors")
    (folder / "d.safetensors").mkdir()
    for name in ("dangling", "d"):
        with pytest.raises(WeightsError, match="is not a file"):
            find_lora(name, folder)


def test_a_linked_lora_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.safetensors").touch()
    (tmp_path / "loras").symlink_to(tmp_path / "real")
    assert find_lora("x", tmp_path / "loras").name == "x.safetensors"
