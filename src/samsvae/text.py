"""Numbers as people read them."""

from __future__ import annotations


def span(seconds: float) -> str:
    """H:MM:SS, of as many hours as there are."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{rest:02}"
