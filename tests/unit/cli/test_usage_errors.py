"""Wrong usage of the command line is answered in one line."""

import pytest

from lorasmith.cli import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("frob", "no such command 'frob'; lorasmith --help lists what there is"),
        ("lora ifno x", "no such command 'ifno'; did you mean 'info'?"),
        ("--frob", "--frob: lorasmith has no such option; lorasmith --help lists what there is"),
        ("generate x --stpes 3", "--stpes: lorasmith generate has no such option; did you mean "
         "--steps, --sampler?"),
        ("evaluate x --sedes 3", "--sedes: lorasmith evaluate has no such option; did you mean "
         "--seeds, --seed?"),
        ("lora info x --jsn", "--jsn: lorasmith lora info has no such option; did you mean "
         "--json?"),
        ("model info --frob", "--frob: lorasmith model info has no such option; lorasmith model "
         "info --help lists what there is"),
        ("generate", "lorasmith generate needs PROMPT; lorasmith generate --help lists what there "
         "is"),
        ("evaluate", "lorasmith evaluate needs RUN|FILE...; lorasmith evaluate --help lists what "
         "there is"),
        ("evaluate x --precision fp8", "--precision: 'fp8' is not one of 'fp32', 'fp16', 'bf16'"),
    ],
)  # fmt: skip
def test_wrong_usage_is_answered_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


def test_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lora"]) == 2
    captured = capsys.readouterr()
    assert "Usage: lorasmith lora" in captured.out + captured.err
