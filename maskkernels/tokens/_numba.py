"""Tokens as flat arrays, as Numba kernels take them."""

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


def row_bounds(input_ids: Tensor, cu_seqlens: Tensor | None) -> np.ndarray:
    """int64 [B + 1]: sample b is the flat range bounds[b]..bounds[b + 1].

    Looked at here, where a kernel is about to run, and nobody else's memory: a graph leaves out the
    looks of the functions that are called, and another thread may write to ``cu_seqlens``.
    """
    if cu_seqlens is None:
        rows, length = input_ids.shape
        return np.arange(rows + 1, dtype=np.int64) * length
    return checked_bounds(cu_seqlens, input_ids.numel())


def flat(tensor: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """``tensor`` as a flat contiguous array of ``dtype``; None becomes an empty one."""
    if tensor is None:
        return _ABSENT[dtype]
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return np.ascontiguousarray(tensor.detach().numpy()).reshape(-1)


def flat_masks(*masks: Tensor | None) -> list[np.ndarray]:
    """Masks as flat arrays of one dtype: int64 where the first is, so as not to copy it, else bool.

    Kernels look at few of their elements, and one dtype for all halves the kernels to compile.
    """
    first = next((mask for mask in masks if mask is not None), None)
    dtype = torch.int64 if first is not None and first.dtype == torch.int64 else torch.bool
    masks = tuple(m if m is None or not m.is_floating_point() else m != 0 for m in masks)
    return [flat(mask, dtype) for mask in masks]
