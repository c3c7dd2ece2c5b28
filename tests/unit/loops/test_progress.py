import io

from rich.console import Console

from lorasmith.loops.progress import progress_bar


def shown(terminal: bool, enabled: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with progress_bar("learning", 4, done=1, enabled=enabled, console=console) as advance:
        advance()
        advance(2, "loss 0.25")
    return stream.getvalue()


def test_terminal_shows_title_count_and_note() -> None:
    text = shown(terminal=True)
    assert "learning" in text
    assert "4/4" in text
    assert "loss 0.25" in text


def test_bar_is_hidden_elsewhere_and_when_disabled() -> None:
    assert shown(terminal=False).strip() == ""
    assert shown(terminal=True, enabled=False).strip() == ""
