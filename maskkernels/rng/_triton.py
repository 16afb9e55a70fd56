"""The random contract for Triton kernels, and the two public functions on the GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.tokens._triton import BLOCK, Layout, layout_of, row

WORDS = 256


@triton.jit
def _philox(quad, sample, c3, seed):
    """The four uint32 words of each int64 ``quad``, by index % 4."""
    zero = tl.zeros_like(quad).to(tl.uint32)
    return tl.philox(
        seed,
        quad.to(tl.uint32),
        zero + sample.to(tl.uint32),
        zero + (sample >> 32).to(tl.uint32),
        zero + c3.to(tl.uint32),
    )


@triton.jit
def word(index, sample, c3, seed):
    """The uint32 word of each int64 ``index``; ``sample`` and ``seed`` are int64 bit patterns."""
    r0, r1, r2, r3 = _philox(index >> 2, sample, c3, seed)
    lane = index & 3
    return tl.where(lane < 2, tl.where(lane == 0, r0, r1), tl.where(lane == 2, r2, r3))


@triton.jit
def words_of_quads(quad, sample, c3, seed):
    """uint32 [4 * Q]: the words of indices 4 * quad .. 4 * quad + 3 for Q consecutive quads.

    What ``word`` gives for consecutive indices, at a quarter of the work.
    """
    r0, r1, r2, r3 = _philox(quad, sample, c3, seed)
    return tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))


@triton.jit
def splitmix64(x):
    """splitmix64 on uint64."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["n", "seed", "c3"])
def _random_words(
    sample_ptr, index_ptr, out_ptr, n: tl.int64, seed: tl.int64, c3: tl.int64, BLOCK: tl.constexpr
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = offs < n
    sample = tl.load(sample_ptr + offs, mask=ok, other=0)
    index = tl.load(index_ptr + offs, mask=ok, other=0)
    tl.store(out_ptr + offs, word(index, sample, c3, seed).to(tl.int64), mask=ok)


@triton.jit
def _hash_rows(
    ids_ptr, real_ptr, first_ptr, bounds_ptr, out_ptr, length: tl.int64, HAS_REAL: tl.constexpr,
    PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a sample; the sum is modulo 2^64, so its order does not matter."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = row(b, bounds_ptr, length, PACKED)
    first = begin
    if HAS_REAL:
        first = tl.load(first_ptr + b)
    total = tl.zeros([BLOCK], dtype=tl.uint64)
    for start in range(first, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        ok = offs < end
        if HAS_REAL:
            ok = ok & (tl.load(real_ptr + offs, mask=ok, other=0) != 0)
        ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
        mixed = splitmix64((((offs - first) << 32) | (ids & 0xFFFFFFFF)).to(tl.uint64))
        total += tl.where(ok, mixed, tl.zeros_like(mixed))
    tl.store(out_ptr + b, splitmix64(tl.sum(total, 0)).to(tl.int64))


def hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    return hash_samples(
        input_ids.reshape(-1).contiguous(), layout_of(input_ids, cu_seqlens, attention_mask)
    )


def hash_samples(ids: Tensor, layout: Layout) -> Tensor:
    """``hash_rows`` of flat ids whose layout is known."""
    samples, length, bounds, real, first = layout
    out = torch.empty(samples, dtype=torch.int64, device=ids.device)
    if samples:
        _hash_rows[(samples,)](
            ids, ids if real is None else real, ids if first is None else first,
            ids if bounds is None else bounds, out, length, real is not None, bounds is not None,
            BLOCK,
        )  # fmt: skip
    return out


def random_words(sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    out = torch.empty_like(index, memory_format=torch.contiguous_format)
    n = out.numel()
    if n:
        _random_words[(triton.cdiv(n, WORDS),)](
            sample_ids.contiguous(), index.contiguous(), out, n, seed, epoch << 8 | stream, WORDS
        )
    return out
