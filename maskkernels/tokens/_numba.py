"""Tokens as flat arrays, as Numba kernels take them."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskkernels.runtime.jit import inlined
from maskkernels.tokens.checks import checked_bounds

_ABSENT = {
    torch.bool: np.empty(0, np.bool_),
    torch.uint8: np.empty(0, np.uint8),
    torch.int64: np.empty(0, np.int64),
    torch.float64: np.empty(0, np.float64),
}


@inlined
def first_real(real):
    """The first column the mask keeps; 0 for an empty mask, which keeps all."""
    first = 0
    while first < real.size and not real[first]:
        first += 1
    return first


@inlined
def longest_row(bounds, first_row, last_row):
    """How many tokens the longest of some rows has."""
    longest = np.int64(0)
    for b in range(first_row, last_row):
        longest = max(longest, bounds[b + 1] - bounds[b])
    return longest


def row_bounds(input_ids: Tensor, cu_seqlens: Tensor | None) -> np.ndarray:
    """int64 [B + 1]: sample b is the flat range bounds[b]..bounds[b + 1].

    Looked at here, where a kernel is about to run, and nobody else's memory: a graph leaves out the
    looks of the functions that are called, and another thread may write to ``cu_seqlens``.
    """
    if cu_seqlens is None:
        return _even_bounds(*input_ids.shape)
    return checked_bounds(cu_seqlens, input_ids.numel())


@lru_cache(maxsize=8)
def _even_bounds(rows: int, length: int) -> np.ndarray:
    """int64 [rows + 1], shared by the calls on batches of one shape: kernels only read it."""
    return np.arange(rows + 1, dtype=np.int64) * length


def flat(tensor: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """``tensor`` as a flat contiguous array of ``dtype``; None becomes an empty one."""
    if tensor is None:
        return _ABSENT[dtype]
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.numpy().ravel()


def flat_masks(*masks: Tensor | None) -> list[np.ndarray]:
    """Masks as flat arrays of one dtype: int64 where the first is, so as not to copy it, else bool.

    Kernels look at few of their elements, and one dtype for all halves the kernels to compile.
    """
    dtype = torch.bool
    for mask in masks:
        if mask is not None:
            dtype = torch.int64 if mask.dtype is torch.int64 else torch.bool
            break
    return [
        flat(mask if mask is None or not mask.is_floating_point() else mask != 0, dtype)
        for mask in masks
    ]
