"""The random contract for Numba kernels, and the two public functions on the CPU."""

import numba as nb
import numpy as np
import torch
from torch import Tensor

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_U32, _U2 = np.uint64(32), np.uint64(2)
_LOW = np.uint64(0xFFFFFFFF)


@nb.njit(inline="always")
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 scalars."""
    for _ in range(10):
        p0 = _M0 * np.uint64(c0)
        p1 = _M1 * np.uint64(c2)
        c0 = np.uint32(np.uint32(p1 >> _U32) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(p0 >> _U32) ^ c3 ^ k1)
        c1 = np.uint32(p1)
        c3 = np.uint32(p0)
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)
    return c0, c1, c2, c3


@nb.njit(inline="always")
def quad(index, sample, c3, seed):
    """The four words of the indices 4 * (index // 4) and on; ``sample`` and ``seed`` are uint64."""
    return philox4x32(
        np.uint32(np.uint64(index) >> _U2),
        np.uint32(sample & _LOW),
        np.uint32(sample >> _U32),
        c3,
        np.uint32(seed & _LOW),
        np.uint32(seed >> _U32),
    )


@nb.njit(inline="always")
def word(index, sample, c3, seed):
    """The one word of ``index``, as uint64."""
    r0, r1, r2, r3 = quad(index, sample, c3, seed)
    lane = index & 3
    return np.uint64(r0 if lane == 0 else r1 if lane == 1 else r2 if lane == 2 else r3)


@nb.njit(inline="always")
def splitmix64(x):
    """splitmix64 on a uint64 scalar."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(inline="always")
def hash_row(ids, real, first):
    """Content hash of a row: ``ids`` [T], ``real`` [T] or empty, from its first real column."""
    total = np.uint64(0)
    for t in range(first, ids.size):
        if real.size == 0 or real[t]:
            position = np.uint64(t - first)
            total += splitmix64((position << _U32) | (np.uint64(ids[t]) & _LOW))
    return splitmix64(total)


@nb.njit(inline="always")
def first_real(real):
    """The first column the mask keeps; 0 for an empty mask, which keeps all."""
    first = 0
    while first < real.size and not real[first]:
        first += 1
    return first


@nb.njit(nogil=True, cache=True)
def _hash_rows(ids, real, bounds, out):
    for b in range(out.size):
        row = ids[bounds[b] : bounds[b + 1]]
        keep = real[bounds[b] : bounds[b + 1]] if real.size else real
        out[b] = hash_row(row, keep, first_real(keep))


@nb.njit(nogil=True, cache=True)
def _random_words(samples, index, seed, c3, out):
    for i in range(out.size):
        out[i] = word(index[i], samples[i], c3, seed)


def counter_word(epoch: int, stream: int) -> np.uint32:
    """Counter word c3 of the contract."""
    return np.uint32(epoch << 8 | stream)


def row_bounds(input_ids: Tensor, cu_seqlens: Tensor | None) -> np.ndarray:
    """int64 [B + 1]: sample b is the flat range bounds[b]..bounds[b + 1]."""
    if cu_seqlens is None:
        rows, length = input_ids.shape
        return np.arange(rows + 1, dtype=np.int64) * length
    return cu_seqlens.to(torch.int64).contiguous().numpy()


def flat(tensor: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """``tensor`` as a flat contiguous array of ``dtype``; None becomes an empty one."""
    if tensor is None:
        return torch.empty(0, dtype=dtype).numpy()
    return tensor.detach().reshape(-1).to(dtype).contiguous().numpy()


def hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    bounds = row_bounds(input_ids, cu_seqlens)
    out = torch.empty(bounds.size - 1, dtype=torch.int64)
    real = flat(attention_mask, torch.bool)
    _hash_rows(flat(input_ids, input_ids.dtype), real, bounds, out.numpy().view(np.uint64))
    return out


def random_words(sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    out = torch.empty_like(index, memory_format=torch.contiguous_format)
    _random_words(
        flat(sample_ids, torch.int64).view(np.uint64),
        flat(index, torch.int64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(epoch, stream),
        out.numpy(),
    )
    return out
