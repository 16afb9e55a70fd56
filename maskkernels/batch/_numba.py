"""Padding on the CPU: each row is written once, by a few threads where the batch is large."""

import numpy as np

from maskkernels.runtime.jit import kernel
from maskkernels.runtime.threads import over_rows


@kernel
def _pad_rows(values, bounds, left, padding, out, first_row, last_row):
    for b in range(first_row, last_row):
        row, target = values[bounds[b] : bounds[b + 1]], out[b]
        begin = target.size - row.size if left else 0
        target[:begin] = padding
        for t in range(row.size):
            target[begin + t] = row[t]
        target[begin + row.size :] = padding


@kernel
def _real_rows(bounds, left, out, first_row, last_row):
    for b in range(first_row, last_row):
        n, target = bounds[b + 1] - bounds[b], out[b]
        begin = target.size - n if left else 0
        target[:begin] = 0
        target[begin : begin + n] = 1
        target[begin + n :] = 0


def pad(values: np.ndarray, bounds: np.ndarray, left: bool, padding: int, out: np.ndarray) -> None:
    over_rows(lambda i, j: _pad_rows(values, bounds, left, padding, out, i, j), bounds)


def real(bounds: np.ndarray, left: bool, out: np.ndarray) -> None:
    over_rows(lambda i, j: _real_rows(bounds, left, out, i, j), bounds)
