"""Numbers as pages and tables show them."""


def format_duration(seconds: float) -> str:
    """Return a time such as ``2 min 05 s``."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds_left:02d} s" if minutes else f"{seconds_left} s"


def format_count(count: int) -> str:
    """Return a count with a unit prefix and three digits: ``1.31 M``."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return str(count)


def format_percent(share: float) -> str:
    """Return a share as percent: two decimals below 10%, one above."""
    return f"{share:.2%}" if abs(share) < 0.1 else f"{share:.1%}"


def format_leak(share: float | None) -> str:
    """Return a leak or a gain as percent, exactly zero as 0, and None as a dash."""
    if share is None:
        return "–"
    if share == 0:
        return "0"
    return f"{share:.1%}" if abs(share) >= 0.001 else f"{share:.1e}"
