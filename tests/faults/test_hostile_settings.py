"""Settings that nobody meant: each is one line that names the file and the field."""

import os
from pathlib import Path

import pytest

from lorasmith.config.features import load_train_config
from lorasmith.config.reading.load import load_config, parse_override
from lorasmith.config.reading.read_toml import MAX_FILE_BYTES, parse_value, read_toml
from lorasmith.config.train_config import TrainConfig
from lorasmith.core.errors import ConfigError

BODY = "[data]\npath = {}\ntag = 'inkq'\n[output]\nname = 'out/x'\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_train_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))
    return str(caught.value)


# --- files of Windows -----------------------------------------------------------------------


def test_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    text = BODY.format("'in/set'")
    assert load_train_config(write(tmp_path, b"\xef\xbb\xbf" + text.encode())).data.tag == "inkq"


def test_utf_16_is_named(tmp_path: Path) -> None:
    assert "UTF-16 text; save it as UTF-8" in refusal(
        write(tmp_path, BODY.format("'a'").encode("utf-16"))
    )


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        (r'"D:\new\train"', r"data.path: the path has a control character (\n); in double quotes"),
        (r'"D:\new\train"', r"write 'D:\new' in single quotes, or D:/new"),
        (r'"D:\temp"', r"(\t)"),
        (r'"C:\Users\me"', "write Windows paths in single quotes"),
        (r'"C:\data"', "write Windows paths in single quotes"),
        (r'"a\u0000b"', "NUL"),
        (r'"a\u001bb"', r"\x1b"),
        ('""', "the path is empty"),
        (f'"{"x" * 300}"', "300 bytes"),
        (f'"{"x/" * 3000}"', "6,000 bytes"),
        ('"~nobody-of-this-name/x"', "no user's home folder"),
    ],
)
def test_path_that_is_none_is_explained(tmp_path: Path, written: str, hint: str) -> None:
    assert hint in refusal(write(tmp_path, BODY.format(written)))


def test_windows_path_in_single_quotes_is_read(tmp_path: Path) -> None:
    config = load_train_config(write(tmp_path, BODY.format(r"'D:\new\train'")))
    assert str(config.data.path) == r"D:\new\train"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (r"D:\new\train", "single quotes"),
        ("x" * 200, "200 bytes"),
        ("a\\u0000b", "NUL"),
        ("..", "name"),
    ],
)
def test_name_that_is_none_is_explained(tmp_path: Path, name: str, hint: str) -> None:
    text = BODY.format("'in'").replace("'out/x'", f'"{name}"')
    message = refusal(write(tmp_path, text))
    assert "output.name: " in message
    assert hint in message


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "train.steps=true",
        "train.steps=-1",
        "train.steps=1.5",
        f"train.steps={10**30}",
        f"train.steps={2**40}",
        f"train.steps={'9' * 5000}",
        f"train.steps=0x{'f' * 5000}",
        "train.learning_rate=1e400",
        "train.learning_rate=inf",
        "train.learning_rate=1e308",
        "lora.alpha=1e31",
        "train.learning_rate=nan",
        "train.learning_rate=-1e-4",
        "train.learning_rate=true",
        "train.lr_warmup_steps=inf",
        "train.lr_warmup_steps=nan",
        "train.lr_warmup_steps=1e400",
        "train.lr_scheduler=5",
        "train.lr_scheduler=[1]",
        "train.lr_scheduler_min_lr_ratio=nan",
        "train.optimizer_args={eps=inf}",
        f"train.optimizer_args={{k={10**30}}}",
        "train.optimizer_args={betas=[0.9, nan]}",
        "train.seed=true",
        f"train.seed={2**64}",
        "train.vram_limit=1e400GB",
        "lora.rank=true",
        "lora.alpha=inf",
        "lora.dropout=nan",
        "preserve.strength=inf",
        "data.prior_loss_weight=inf",
        "data.max_aspect_ratio=inf",
        "validation.guidance_scale=inf",
        "validation.prompts=[true]",
        "validation.num_images=true",
    ],
)
def test_number_that_is_none_is_refused(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path, BODY.format("'in'"))
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, path, [setting])
    assert setting.partition("=")[0] in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_switches_are_still_true_or_false(tmp_path: Path) -> None:
    path = write(tmp_path, BODY.format("'in'"))
    config = load_config(TrainConfig, path, ["data.flip_aug=true", "lora.rslora=false"])
    assert config.data.flip_aug
    assert not config.lora.rslora


# --- files that are none --------------------------------------------------------------------


def test_folder_given_as_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, not a file.*give a settings file"):
        read_toml(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_given_as_settings_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="is a named pipe, not a file"):
        read_toml(tmp_path / "pipe.toml")


def test_endless_settings_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match=r"larger than 256 KiB.*give a settings file"):
        read_toml(path)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 50_000, "a." * 50_000 + "b = 1", "a." * 99 + "b = 1", "a = " + "{b=" * 20_000],
)
def test_deep_settings_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(write(tmp_path, text))


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000])
def test_path_of_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        read_toml(Path(name))


def test_override_of_several_lines_is_text() -> None:
    assert parse_value("1\nb = 2") == "1\nb = 2"
    assert parse_value("[\n1,\n2]") == [1, 2]


def test_override_of_thousands_of_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write it as section\.key=value"):
        parse_override("a." * 50_000 + "b=1")
