"""Numbers formatted for people."""

from __future__ import annotations


def span(seconds: float) -> str:
    """Seconds as H:MM:SS; hours are not limited to 24."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{rest:02}"
