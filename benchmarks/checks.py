"""The checks of all benchmarks: each prints PASS or FAIL with its number, and the benchmark goes on in either case."""

from __future__ import annotations

#: The checks that failed, in words.
FAILED: list[str] = []


def check(name: str, value: float, allowed: float) -> bool:
    """Print whether a value is at most the allowed one, and remember it if not (also for nan)."""
    passed = value <= allowed
    text = f"{name}: {value:.1e}, allowed is {allowed:.0e}"
    print(f"{'PASS' if passed else 'FAIL'}  {text}", flush=True)
    if not passed:
        FAILED.append(text)
    return passed


def status() -> int:
    """The exit status of the benchmark: 1 if a check failed. Prints the failed checks again, at the end."""
    for text in FAILED:
        print(f"FAIL  {text}", flush=True)
    return 1 if FAILED else 0
