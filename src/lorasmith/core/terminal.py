"""Text on a terminal."""


def escape_control_characters(text: str) -> str:
    """Replace characters that could steer a terminal by their escapes, such as ``\\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
