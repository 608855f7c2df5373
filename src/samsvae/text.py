"""Numbers formatted for people."""

from __future__ import annotations


def span(seconds: float) -> str:
    """Seconds as H:MM:SS; hours are not limited to 24."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{rest:02}"


def in_words(seconds: float) -> str:
    """Seconds as '12 s', '3 min 12 s' or '2 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"
