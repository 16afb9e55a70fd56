"""Padding in plain NumPy. This file is the specification of the kernels."""

import numpy as np


def pad(values: np.ndarray, bounds: np.ndarray, left: bool, padding: int, out: np.ndarray) -> None:
    """Write the rows of ``values`` into ``out`` [B, T], filled up with ``padding``."""
    out[:] = padding
    for b, row in enumerate(np.split(values, bounds[1:-1]) if len(out) else []):
        begin = out.shape[1] - row.size if left else 0
        out[b, begin : begin + row.size] = row


def real(bounds: np.ndarray, left: bool, out: np.ndarray) -> None:
    """Write 1 into ``out`` [B, T] at tokens, 0 at padding."""
    column = np.arange(out.shape[1])
    length = np.diff(bounds)[:, None]
    out[:] = column >= out.shape[1] - length if left else column < length
