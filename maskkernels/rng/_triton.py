"""The random contract for Triton kernels, and the two public functions on the GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def word(index, sample, c3, seed):
    """The uint32 word of each int64 ``index``; ``sample`` and ``seed`` are int64 bit patterns."""
    r0, r1, r2, r3 = tl.philox(
        seed,
        (index >> 2).to(tl.uint32),
        sample.to(tl.uint32),
        (sample >> 32).to(tl.uint32),
        tl.zeros_like(index).to(tl.uint32) + c3.to(tl.uint32),
    )
    lane = index & 3
    return tl.where(lane < 2, tl.where(lane == 0, r0, r1), tl.where(lane == 2, r2, r3))


@triton.jit
def splitmix64(x):
    """splitmix64 on uint64."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
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
    ids_ptr, real_ptr, first_ptr, bounds_ptr, out_ptr, HAS_REAL: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a sample; the sum is modulo 2^64, so its order does not matter."""
    b = tl.program_id(0).to(tl.int64)
    begin = tl.load(bounds_ptr + b)
    end = tl.load(bounds_ptr + b + 1)
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


def row_bounds(input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """int64 [B + 1]: sample b is the flat range bounds[b]..bounds[b + 1]; never outside the ids."""
    if cu_seqlens is None:
        rows, length = input_ids.shape
        return torch.arange(rows + 1, device=input_ids.device) * length
    return cu_seqlens.to(torch.int64).clamp(0, input_ids.numel())


def first_real(bounds: Tensor, real: Tensor | None) -> Tensor:
    """int64 [B]: the flat index of each sample's first real token."""
    if real is None:
        return bounds[:-1]
    n = real.numel()
    column = torch.arange(n, device=real.device)
    sample = torch.searchsorted(bounds, column, right=True) - 1
    sample = torch.where(sample < 0, bounds.numel() - 1, sample)  # before every sample: last slot
    first = torch.full((bounds.numel(),), n, device=real.device)
    return first.scatter_reduce(0, sample, torch.where(real != 0, column, n), "amin")[:-1]


def as_bytes(tensor: Tensor | None) -> Tensor | None:
    """A mask as contiguous flat bytes, non-zero where it was."""
    if tensor is None:
        return None
    return (tensor.reshape(-1) != 0).view(torch.uint8).contiguous()


def hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    bounds, real = row_bounds(input_ids, cu_seqlens), as_bytes(attention_mask)
    out = torch.empty(bounds.numel() - 1, dtype=torch.int64, device=input_ids.device)
    if out.numel():
        first = first_real(bounds, real)
        ids = input_ids.reshape(-1).contiguous()
        _hash_rows[(out.numel(),)](
            ids, ids if real is None else real, first, bounds, out, real is not None, BLOCK
        )
    return out


def random_words(sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    out = torch.empty_like(index, memory_format=torch.contiguous_format)
    n = out.numel()
    if n:
        _random_words[(triton.cdiv(n, BLOCK),)](
            sample_ids.contiguous(), index.contiguous(), out, n, seed, epoch << 8 | stream, BLOCK
        )
    return out
