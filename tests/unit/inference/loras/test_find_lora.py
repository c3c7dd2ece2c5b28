"""From names to LoRA files, and attempts to leave the LoRA folder."""

import builtins
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasmith.core.errors import ConfigError, LorasmithError, WeightsError
from lorasmith.inference.loras.find import find_lora, parse_lora_option, resolve_lora
from lorasmith.inference.prompts.parse_prompt import LoraRequest


@given(st.text(max_size=30))
def test_mention_never_leads_out_of_the_folder(tmp_path_factory, name: str) -> None:
    folder = tmp_path_factory.mktemp("l")
    (folder / "x.safetensors").touch()
    try:
        path = find_lora(name, folder)
    except LorasmithError:
        return
    assert path == folder / "x.safetensors"


def test_find_lora_returns_the_file_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "noto.safetensors").touch()
    (tmp_path / "v1.5 style.safetensors").touch()
    (tmp_path / "noto.txt").touch()
    assert find_lora("noto", tmp_path) == tmp_path / "noto.safetensors"
    assert find_lora("noto.safetensors", tmp_path) == tmp_path / "noto.safetensors"
    assert find_lora("v1.5 style", tmp_path) == tmp_path / "v1.5 style.safetensors"


def test_unknown_lora_is_refused_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder"):
        find_lora("x", tmp_path / "absent")
    with pytest.raises(WeightsError, match="it has no LoRA files"):
        find_lora("x", tmp_path)
    (tmp_path / "apples.safetensors").touch()
    with pytest.raises(WeightsError, match="did you mean apples"):
        find_lora("aples", tmp_path)
    with pytest.raises(WeightsError, match="has 1 LoRA files"):
        find_lora("zzz", tmp_path)


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
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


def test_linked_lora_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.safetensors").touch()
    (tmp_path / "loras").symlink_to(tmp_path / "real")
    assert find_lora("x", tmp_path / "loras").name == "x.safetensors"


# --- runs in the folder ---------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_lora_in_a_run_folder_is_found_by_name(tmp_path: Path) -> None:
    run = tmp_path / "ink"
    touch(
        tmp_path / "ink.safetensors", run / "ink-000100.safetensors", run / "ink-best.safetensors"
    )
    touch(
        run / "checkpoints" / "step-1" / "deep.safetensors", run / ".lorasmith-tmp-1-x.safetensors"
    )
    assert find_lora("ink", tmp_path) == tmp_path / "ink.safetensors"
    assert find_lora("ink-best", tmp_path) == run / "ink-best.safetensors"
    assert find_lora("ink-000100", tmp_path) == run / "ink-000100.safetensors"
    with pytest.raises(WeightsError, match="did you mean ink-best"):
        find_lora("ink-bets", tmp_path)
    for hidden in ("deep", ".lorasmith-tmp-1-x"):
        with pytest.raises(WeightsError, match=r"has 3 LoRA files|did you mean"):
            find_lora(hidden, tmp_path)


def test_ambiguous_name_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "ink.safetensors", tmp_path / "b" / "ink.safetensors")
    with pytest.raises(WeightsError, match="several files have this name") as caught:
        find_lora("ink", tmp_path)
    assert f"{tmp_path}/a/ink.safetensors and {tmp_path}/b/ink.safetensors" in str(caught.value)
    touch(tmp_path / "c.safetensors", tmp_path / "c" / "c.safetensors")
    with pytest.raises(WeightsError, match=r"c\.safetensors and .*c/c\.safetensors"):
        find_lora("c", tmp_path)


def test_linked_folder_that_leads_out_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras, outside = tmp_path / "loras", tmp_path / "outside"
    touch(outside / "secret.safetensors", loras / "run" / "mine.safetensors")
    (loras / "link").symlink_to(outside)
    (loras / "up").symlink_to("..")
    (loras / "loop").symlink_to("loop")
    (loras / "run" / "leak.safetensors").symlink_to(outside / "secret.safetensors")
    listed: list[Path] = []
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or original(path))
    with pytest.raises(WeightsError, match="no secret"):
        find_lora("secret", loras)
    with pytest.raises(WeightsError, match="link out of"):
        find_lora("leak", loras)
    assert find_lora("mine", loras) == loras / "run" / "mine.safetensors"
    assert {path.resolve() for path in listed} == {loras, loras / "run"}


@pytest.mark.parametrize(
    "name",
    ["../../x", "../secret", "/etc/passwd", "..", "a/b", "run/mine", "a\\b", "x\0", "\0", "", "~",
     "*", "x" * 5000, "C:", ".", "link/secret", "%2e%2e%2fsecret", "se?ret", "[s]ecret",
     "．．/secret"],
)  # fmt: skip
def test_no_name_opens_a_file_outside_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = tmp_path / "loras"
    touch(loras / "run" / "mine.safetensors", tmp_path / "secret.safetensors")
    (loras / "link").symlink_to(tmp_path)

    def no_opening(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(builtins, "open", no_opening)
    monkeypatch.setattr(os, "open", no_opening)
    with pytest.raises(LorasmithError) as caught:
        find_lora(name, loras)
    assert "\0" not in str(caught.value)


def test_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(WeightsError, match="cannot be listed"):
        find_lora("x", tmp_path)


# --- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("ink", "ink", 1.0),
        ("ink:0.8", "ink", 0.8),
        ("ink:-1", "ink", -1.0),
        (" my file : .5", "my file", 0.5),
        ("v1.5:2", "v1.5", 2.0),
        ("some/where/ink.safetensors", "some/where/ink.safetensors", 1.0),
        ("some/where/ink.safetensors:0.25", "some/where/ink.safetensors", 0.25),
        ("ink.safetensors:0.25", "ink.safetensors", 0.25),
        ("C:\\loras\\ink.safetensors", "C:\\loras\\ink.safetensors", 1.0),
        ("C:\\loras\\ink.safetensors:3", "C:\\loras\\ink.safetensors", 3.0),
        ("odd:folder/ink.safetensors", "odd:folder/ink.safetensors", 1.0),
    ],
)
def test_lora_option_is_parsed(text: str, name: str, weight: float) -> None:
    assert parse_lora_option(text) == LoraRequest(name, weight)


def test_lora_option_accepts_what_a_prompt_does() -> None:
    expected = LoraRequest("a:b/ink.safetensors", 0.5, 1.0, "MIDD", 2, 9)
    assert parse_lora_option("a:b/ink.safetensors:0.5:1:lbw=MIDD:step=2-9") == expected
    with pytest.raises(ConfigError, match="column 9: 'hi' is not a number"):
        parse_lora_option("ink:0.5:hi")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no name"), (":1", "has no name"), ("ink:", "'' is not a number"),
        ("ink:strong", "'strong' is not a number"), ("ink:nan", "weight nan"),
        ("ink:inf", "weight inf"), ("ink:1e9", "weight 1e9"), ("a/b:11", "weight 11"),
    ],
)  # fmt: skip
def test_malformed_lora_option_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--lora") as caught:
        parse_lora_option(text)
    assert message in str(caught.value)


def test_resolve_lora_accepts_paths_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "loras" / "ink.safetensors", tmp_path / "here.safetensors")
    monkeypatch.chdir(tmp_path)
    loras = Path("loras")
    assert resolve_lora("ink", loras) == loras / "ink.safetensors"
    assert resolve_lora("here.safetensors", loras) == Path("here.safetensors")
    assert resolve_lora("./here.safetensors", loras) == Path("here.safetensors")
    assert resolve_lora(Path("here.safetensors"), loras) == Path("here.safetensors")
    assert resolve_lora(f"{tmp_path}/here.safetensors", loras) == tmp_path / "here.safetensors"
    with pytest.raises(WeightsError, match=r"no here\.safetensors in loras"):
        resolve_lora("here", loras)
    with pytest.raises(WeightsError, match=r"no such file; did you mean here\.safetensors"):
        resolve_lora("./heer.safetensors", loras)
    with pytest.raises(WeightsError, match="cannot be opened"):
        resolve_lora("x" * 5000 + ".safetensors", loras)
    with pytest.raises(ConfigError, match="NUL"):
        resolve_lora("a/\0.safetensors", loras)
