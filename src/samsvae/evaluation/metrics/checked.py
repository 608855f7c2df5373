"""Checks of the arrays that metrics take: the shape and the values, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np

from samsvae.errors import DataError


def checked(name: str, values: Any, shape: tuple[int | str, ...], *, finite: bool = True) -> np.ndarray:
    """The values as float64; a letter in ``shape`` stands for any length of at least 1.

    DataError if the shape is another or, with ``finite``, if a value is NaN or infinite.
    """
    found = np.asarray(values, float)
    fits = found.ndim == len(shape) and all(
        length == (wanted if isinstance(wanted, int) else max(length, 1))
        for length, wanted in zip(found.shape, shape, strict=True)
    )
    if not fits:
        wanted_shape = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise DataError(
            f"{name} has the shape {found.shape}, but it must be ({wanted_shape}), with no empty dimension."
        )
    if finite and not (good := np.isfinite(found)).all():
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        raise DataError(
            f"{name} has {np.count_nonzero(~good)} values that are not finite, the first at {place}; "
            "leave these rows or columns out."
        )
    return found


def checked_codes(name: str, condition: Any, n: int, n_conditions: int) -> np.ndarray:
    """Codes (n,) of conditions, integers from 0 to ``n_conditions`` - 1; DataError otherwise."""
    codes = checked(name, condition, (n,))
    wrong = np.flatnonzero((codes != np.floor(codes)) | (codes < 0) | (codes >= n_conditions))
    if len(wrong):
        raise DataError(
            f"{name} has the code {codes[wrong[0]]:g} at {wrong[0]}; codes are integers from 0 to {n_conditions - 1}."
        )
    return codes.astype(np.int64)
