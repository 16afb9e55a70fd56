"""Tokens as Triton kernels take them: where samples are, which tokens may be masked, flat masks."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.tokens.layout import safe_bounds

BLOCK = 1024  # tokens of a row looked at together
_MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@triton.jit
def row(b, bounds_ptr, length, PACKED: tl.constexpr):
    """(begin, end) of a sample: flat indices."""
    if PACKED:
        return tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    else:  # noqa: RET505  (the compiler follows one of two branches)
        return b * length, b * length + length


@triton.jit
def eligible_at(
    offs, ok, ids, unit, real_ptr, special_ptr, table_ptr, size,
    HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_UNITS: tl.constexpr,
):  # fmt: skip
    """Which of ``offs`` may be masked: real, not special, in the table, in a unit."""
    eligible = ok
    if HAS_REAL:
        eligible = eligible & (tl.load(real_ptr + offs, mask=ok, other=0) != 0)
    if HAS_SPECIAL:
        eligible = eligible & (tl.load(special_ptr + offs, mask=ok, other=1) == 0)
    elif HAS_TABLE:
        in_table = ok & (ids >= 0) & (ids < size)
        entry = tl.load(table_ptr + tl.where(in_table, ids, 0), mask=in_table, other=0)
        eligible = eligible & (entry != 0)
    if HAS_UNITS:
        eligible = eligible & (unit >= 0)
    return eligible


@triton.jit
def _first_real(
    real_ptr, bounds_ptr, first_ptr, length: tl.int64, PACKED: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a sample: the flat index of its first real token, or where it ends."""
    b = tl.program_id(0).to(tl.int64)
    start, end = row(b, bounds_ptr, length, PACKED)
    first = end
    while start < first:
        offs = start + tl.arange(0, BLOCK)
        real = tl.load(real_ptr + offs, mask=offs < end, other=0) != 0
        first = tl.min(tl.where(real, offs, end), 0)
        start += BLOCK
    tl.store(first_ptr + b, first)


class Layout(NamedTuple):
    """Where the samples of a batch are, as kernels take it.

    Attributes:
        samples: B.
        length: T of a padded batch, 1 of a packed one.
        bounds: int64 [B + 1] of a packed batch: sample b is the flat range
            bounds[b]..bounds[b + 1], never falling and never outside the ids. None for [B, T].
        real: [N], non-zero where a token is real; None where all are.
        first: int64 [B], the flat index of each sample's first real token; None where that is its
            first.
    """

    samples: int
    length: int
    bounds: Tensor | None
    real: Tensor | None
    first: Tensor | None


def layout_of(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Layout:
    bounds = first = None
    real = flat_mask(attention_mask)
    if cu_seqlens is None:
        samples, length = input_ids.shape
    else:
        samples, length = cu_seqlens.numel() - 1, 1
        bounds = safe_bounds(cu_seqlens, input_ids.numel())
    if real is not None:
        first = torch.empty(samples, dtype=torch.int64, device=input_ids.device)
        if samples:
            _first_real[(samples,)](
                real, real if bounds is None else bounds, first, length, bounds is not None, BLOCK
            )
    return Layout(samples, length, bounds, real, first)


def flat_or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A flat tensor, or ``other`` where it is not given: a kernel never reads that."""
    return other if tensor is None else tensor.reshape(-1).contiguous()


def flat_mask(tensor: Tensor | None) -> Tensor | None:
    """A mask as a contiguous flat tensor of its own integers or, for booleans, of bytes."""
    if tensor is None:
        return None
    if tensor.dtype not in _MASKS:
        tensor = tensor != 0
    flat = tensor.reshape(-1).contiguous()
    return flat.view(torch.uint8) if flat.dtype == torch.bool else flat
