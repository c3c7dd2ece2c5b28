import io
import logging
import sys

import pytest

from lorasmith.cli.log_handler import log_to_terminal

logger = logging.getLogger("lorasmith.training.example")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_notes_are_printed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with log_to_terminal():
        logger.info("compiled in %d s", 7)
        logger.debug("not shown")
    logger.info("after the command")
    assert "note: compiled in 7 s" in terminal.getvalue()
    assert "shown" not in terminal.getvalue()
    assert "after" not in terminal.getvalue()


def test_only_warnings_are_printed_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_terminal():
        logger.info("a note")
        logger.warning("mind the gap")
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_application_can_route_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lorasmith"):
        logger.info("batch size %d", 4)
    assert caplog.messages == ["batch size 4"]
