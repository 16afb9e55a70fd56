"""Rows over a few threads, for kernels that run without the GIL.

As many threads as ``torch.get_num_threads()`` says: one in a DataLoader worker. A pool does not
outlive a fork: the child makes its own.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch

R = TypeVar("R")
WORTH = 1 << 16  # tokens: below this a thread costs more than it brings


def over_rows(work: Callable[[int, int], R], bounds: np.ndarray) -> list[R]:
    """Call ``work(begin, end)`` on ranges of rows that cover them all; the results in order.

    Args:
        work: takes a range of rows. Called from several threads at once.
        bounds: int64 [B + 1]: row b holds the tokens bounds[b]..bounds[b + 1].
    """
    rows, tokens = bounds.size - 1, int(bounds[-1])
    if tokens < 2 * WORTH:
        return [work(0, rows)]
    blocks = min(torch.get_num_threads(), tokens // WORTH, rows)
    if blocks < 2:
        return [work(0, rows)]
    cuts = np.searchsorted(bounds, np.linspace(0, tokens, blocks + 1))
    cuts[0], cuts[-1] = 0, rows
    ranges = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    try:
        others: list[Future[R]] = [_pool(blocks).submit(work, *part) for part in ranges[1:]]
    except RuntimeError:  # the interpreter is shutting down
        return [work(0, rows)]
    return [work(*ranges[0]), *(other.result() for other in others)]


@cache
def _pool(blocks: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(blocks - 1, thread_name_prefix="maskkernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
