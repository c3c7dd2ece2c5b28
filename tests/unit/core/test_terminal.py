from lorasmith.core.text.terminal import escape_control_characters


def test_control_characters_are_escaped_and_printable_text_is_kept() -> None:
    assert escape_control_characters("a\x1b[31mb\u202ec\n") == "a\\x1b[31mb\\u202ec\\n"
    assert escape_control_characters("naïve 日本 ☃") == "naïve 日本 ☃"
