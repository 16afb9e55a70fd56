"""The random contract for Numba kernels, and the two public functions on the CPU.

Philox runs on vectors: its 32-bit words live in 64-bit lanes whose upper halves are junk, cut off
only in front of a multiplication, because a 32x32 -> 64 bit multiply is one instruction a lane.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskkernels.runtime.jit import inlined, kernel
from maskkernels.tokens._numba import first_real, flat, flat_masks, row_bounds
from maskkernels.tokens.checks import check_indices

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_U32, _U2 = np.uint64(32), np.uint64(2)
_LOW = np.uint64(0xFFFFFFFF)


@inlined
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint64 lanes; the low half of each result is the word."""
    for _ in range(10):
        p0 = _M0 * (c0 & _LOW)
        p1 = _M1 * (c2 & _LOW)
        c0 = (p1 >> _U32) ^ c1 ^ k0
        c2 = (p0 >> _U32) ^ c3 ^ k1
        c1 = p1
        c3 = p0
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@inlined
def word(index, c1, c2, c3, k0, k1):
    """The one word of ``index`` (uint64), as uint32; chosen by selects, which vectorise."""
    r0, r1, r2, r3 = philox4x32(index >> _U2, c1, c2, c3, k0, k1)
    odd = index & np.uint64(1)
    low = r1 if odd else r0
    high = r3 if odd else r2
    return np.uint32(high if index & _U2 else low)


@inlined
def fill_words(out, begin, sample, c3, seed):
    """The words of the indices begin, begin + 1...; ``begin`` and ``out.size`` multiples of 4."""
    c1, c2, k0, k1 = sample & _LOW, sample >> _U32, seed & _LOW, seed >> _U32
    quads = np.uint64(begin) >> _U2
    for q in range(out.size >> 2):
        r0, r1, r2, r3 = philox4x32(quads + np.uint64(q), c1, c2, c3, k0, k1)
        out[4 * q] = np.uint32(r0)
        out[4 * q + 1] = np.uint32(r1)
        out[4 * q + 2] = np.uint32(r2)
        out[4 * q + 3] = np.uint32(r3)


@inlined
def gather_words(index, n, sample, c3, seed, out):
    """out[i] = the word of index[i], for i < n."""
    c1, c2, k0, k1 = sample & _LOW, sample >> _U32, seed & _LOW, seed >> _U32
    for i in range(n):
        out[i] = word(np.uint64(index[i]), c1, c2, c3, k0, k1)


@inlined
def splitmix64(x):
    """splitmix64 on a uint64 scalar."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def hash_row(ids, real, first):
    """Content hash of a row: ``ids`` [T], ``real`` [T] or empty, from its first real column."""
    total = np.uint64(0)
    for i in range(ids.size - first):
        h = splitmix64((np.uint64(i) << _U32) | (np.uint64(ids[first + i]) & _LOW))
        if real.size:
            h = h if real[first + i] else np.uint64(0)
        total += h
    return splitmix64(total)


@kernel
def _hash_rows(ids, real, bounds, out):
    for b in range(out.size):
        row = ids[bounds[b] : bounds[b + 1]]
        keep = real[bounds[b] : bounds[b + 1]] if real.size else real
        out[b] = hash_row(row, keep, first_real(keep))


@kernel
def _random_words(samples, index, seed, c3, out):
    k0, k1 = seed & _LOW, seed >> _U32
    for i in range(out.size):
        c1, c2 = samples[i] & _LOW, samples[i] >> _U32
        out[i] = word(np.uint64(index[i]), c1, c2, c3, k0, k1)


@lru_cache(maxsize=8)
def counter_word(epoch: int) -> np.uint64:
    """Counter word c3 of the contract, for stream 0."""
    return np.uint64(epoch << 8)


def hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    bounds = row_bounds(input_ids, cu_seqlens)
    out = torch.empty(bounds.size - 1, dtype=torch.int64)
    (real,) = flat_masks(attention_mask)
    _hash_rows(flat(input_ids, input_ids.dtype), real, bounds, out.numpy().view(np.uint64))
    return out


def random_words(sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    check_indices("index", index, 0)
    out = torch.empty_like(index, memory_format=torch.contiguous_format)
    _random_words(
        flat(sample_ids, torch.int64).view(np.uint64),
        flat(index, torch.int64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(epoch) | np.uint64(stream),
        out.numpy(),
    )
    return out
