"""Units and their rates on the GPU: one program a row, which goes over it block by block.

No kernel here waits for the host, and none trusts a value: a token outside every sample has no unit
and rate 0, a weight that is none counts as 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.backend import numbers_on
from maskkernels.rng._triton import word
from maskkernels.rng.streams import SPAN
from maskkernels.tokens._triton import eligible_at, flat_mask, flat_or, row
from maskkernels.tokens.layout import safe_bounds
from maskkernels.units.weights import FINEST

BLOCK = 1024  # tokens of a row looked at together, a quarter where rows are shorter than that
_FINEST = tl.constexpr(FINEST)
_FAR = tl.constexpr(1 << 30)  # past every unit of a block
# Numbers that change from call to call, and must not compile a kernel again when they do.
_VARYING = ["length", "size", "entries", "seed", "c3", "thresholds", "rate"]


@triton.jit
def _before(ptr, offs, ok, begin):
    """The number before each token, -1 before the first of the row."""
    return tl.load(ptr + offs - 1, mask=ok & (offs > begin), other=-1).to(tl.int64)


@triton.jit
def _where_passed(up_to, BLOCK: tl.constexpr):
    """The index at which the running count ``up_to`` comes to k + 1, for k < BLOCK; else BLOCK."""
    return tl.cumsum(tl.histogram(up_to, BLOCK, mask=up_to < BLOCK), 0)


@triton.jit
def _may(
    offs, ok, ids_ptr, real_ptr, special_ptr, maskable_ptr, word_ids_ptr, groups_ptr, size,
    HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr, HAS_MASKABLE: tl.constexpr,
    HAS_GROUPS: tl.constexpr, WORD_IDS: tl.constexpr,
):  # fmt: skip
    """(ids, which of them may be in a unit)."""
    ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
    may = eligible_at(
        offs, ok, ids, ids, real_ptr, special_ptr, maskable_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_MASKABLE, False,
    )  # fmt: skip
    if WORD_IDS:
        in_word = tl.load(word_ids_ptr + offs, mask=ok, other=-1) >= 0
        if HAS_GROUPS:
            in_word = in_word | (tl.load(groups_ptr + offs, mask=ok, other=-1) >= 0)
        may = may & in_word
    return ids, may


@triton.jit
def _flag(table_ptr, ids, ok, entries):
    inside = ok & (ids >= 0) & (ids < entries)
    return tl.load(table_ptr + tl.where(inside, ids, 0), mask=inside, other=0)


@triton.jit(do_not_specialize=_VARYING)
def _number(
    ids_ptr, bounds_ptr, real_ptr, special_ptr, maskable_ptr, table_ptr, offsets_ptr, word_ids_ptr,
    groups_ptr, out_ptr, length: tl.int64, size: tl.int64, entries: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_MASKABLE: tl.constexpr, HAS_GROUPS: tl.constexpr, OFFSETS: tl.constexpr,
    WORD_IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The flags say which of ``table`` [entries], ``offsets`` [N, 2] and ``word_ids`` counts."""
    begin, end = row(tl.program_id(0).to(tl.int64), bounds_ptr, length, PACKED)
    number = tl.full([], -1, tl.int64)
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        ok = offs < end
        follows = ok & (offs > begin)
        ids, may = _may(
            offs, ok, ids_ptr, real_ptr, special_ptr, maskable_ptr, word_ids_ptr, groups_ptr, size,
            HAS_REAL, HAS_SPECIAL, HAS_MASKABLE, HAS_GROUPS, WORD_IDS,
        )  # fmt: skip
        ids_before, goes_on = _may(
            offs - 1, follows, ids_ptr, real_ptr, special_ptr, maskable_ptr, word_ids_ptr,
            groups_ptr, size, HAS_REAL, HAS_SPECIAL, HAS_MASKABLE, HAS_GROUPS, WORD_IDS,
        )  # fmt: skip
        if OFFSETS:
            first = tl.load(offsets_ptr + offs * 2, mask=ok, other=0)
            end_before = tl.load(offsets_ptr + offs * 2 - 1, mask=follows, other=0)
            begin_before = tl.load(offsets_ptr + offs * 2 - 2, mask=follows, other=0)
            begins = (first > end_before) | (first < begin_before)
        elif WORD_IDS:
            own = tl.load(word_ids_ptr + offs, mask=ok, other=-1)
            begins = own != _before(word_ids_ptr, offs, ok, begin)
        else:
            flags = _flag(table_ptr, ids, ok, entries) & 1
            begins = (flags | (_flag(table_ptr, ids_before, follows, entries) & 2)) != 0
        if HAS_GROUPS:
            group = tl.load(groups_ptr + offs, mask=ok, other=-1)
            before = _before(groups_ptr, offs, ok, begin)
            begins = (group != before) | (begins & (group < 0))
        begins = may & (begins | (goes_on == 0))
        up_to = tl.cumsum(begins.to(tl.int32), 0)
        tl.store(out_ptr + offs, tl.where(may, number + up_to, -1), mask=ok)
        number += tl.max(up_to, 0)


@triton.jit
def _next(at, jump, units, BLOCK: tl.constexpr):
    """jump[at], and ``at`` itself where that is past the units of the block."""
    inside = at < units
    return tl.where(inside, tl.gather(jump, tl.where(inside, at, 0), 0), at)


@triton.jit(do_not_specialize=_VARYING)
def _span_units(
    units_ptr, bounds_ptr, sample_ids_ptr, whole_ptr, cut_ptr, out_ptr, length: tl.int64,
    seed: tl.int64, c3: tl.int64, thresholds: tl.int32,
    PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From each unit, ``jump`` is the one that the next span begins at.

    The spans of a block begin at some unit, and from there 1, 2, 3... jumps on: those of 2^i jumps
    are the last ones twice, so that the block takes as many steps as its number of units has bits.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = row(b, bounds_ptr, length, PACKED)
    sample = tl.load(sample_ids_ptr + b)
    lane = tl.arange(0, BLOCK)
    number = tl.full([], -1, tl.int64)
    left = tl.full([], 0, tl.int32)  # units that the last span goes on for in this block
    for start in range(begin, end, BLOCK):
        offs = start + lane
        ok = offs < end
        unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
        before = _before(units_ptr, offs, ok, begin)
        runs = (unit >= 0) & (before < 0)
        up_to = tl.cumsum(((unit >= 0) & (unit != before)).to(tl.int32), 0)
        units = tl.max(up_to, 0)
        r = word(tl.maximum(unit, 0), sample, c3, seed).to(tl.int64)
        size = tl.full([BLOCK], 1, tl.int32)
        for n in range(thresholds):
            size += (r >= tl.where(runs, tl.load(cut_ptr + n), tl.load(whole_ptr + n))).to(tl.int32)

        # From here on by unit of the block: what its first token has found.
        token = tl.minimum(_where_passed(up_to, BLOCK), BLOCK - 1)
        found = tl.gather(size * 2 + runs.to(tl.int32), token, 0)
        run = tl.cumsum(tl.where(lane < units, found & 1, 0), 0)
        next_run = _where_passed(run, BLOCK)
        next_run = tl.where(next_run < BLOCK, next_run, _FAR)
        first_run = tl.min(tl.where(run > 0, lane, _FAR), 0)
        at = tl.full([BLOCK], 0, tl.int32) + tl.minimum(left, first_run)
        jump = tl.minimum(lane + (found >> 1), tl.gather(next_run, run, 0))
        one_jump = jump
        jumps = 1
        while jumps < units:
            at = tl.where((lane & jumps) != 0, _next(at, jump, units, BLOCK), at)
            jump = _next(jump, jump, units, BLOCK)
            jumps *= 2
        begins = tl.histogram(at, BLOCK, mask=at < units)
        last = tl.max(tl.where(begins > 0, one_jump, 0), 0)
        left = tl.maximum(last, tl.minimum(left, first_run)) - units
        spans = tl.cumsum(tl.minimum(begins, 1), 0)

        own = tl.where(up_to > 0, tl.gather(spans, tl.maximum(up_to - 1, 0), 0), 0)
        tl.store(out_ptr + offs, tl.where(unit >= 0, number + own, -1), mask=ok)
        number += tl.max(spans, 0)


@triton.jit
def _weights(weights_ptr, units_ptr, start, begin, end, carried, BLOCK: tl.constexpr):
    """(float64 [BLOCK], the weight of each token's unit; which are in a unit; the last weight).

    ``carried`` is the last weight of the block before.
    """
    lane = tl.arange(0, BLOCK)
    offs = start + lane
    ok = offs < end
    unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
    inside = unit >= 0
    begins = inside & (unit != _before(units_ptr, offs, ok, begin))
    given = tl.load(weights_ptr + offs, mask=ok, other=0.0).to(tl.float64)
    given = tl.where((given > 0.0) & (given < float("inf")), given, 0.0)
    up_to = tl.cumsum(begins.to(tl.int32), 0)
    token = tl.minimum(_where_passed(up_to, BLOCK), BLOCK - 1)
    first = tl.gather(token, tl.maximum(up_to - 1, 0), 0)
    weight = tl.where(up_to > 0, tl.gather(given, first, 0), carried)
    weight = tl.where(inside, weight, 0.0)
    return weight, inside, tl.sum(tl.where(lane == BLOCK - 1, weight, 0.0), 0)


@triton.jit(do_not_specialize=_VARYING)
def _weigh(
    weights_ptr, units_ptr, bounds_ptr, parts_ptr, asked_ptr, total_ptr, length: tl.int64,
    rate: tl.float64, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weight of each token in parts of its row's largest, their total, and what is asked.

    ``asked`` goes through memory, because a compiler may join its product and the difference that
    follows to one operation with another rounding.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = row(b, bounds_ptr, length, PACKED)
    zero = tl.full([], 0.0, tl.float64)
    largest, carried = zero, zero
    maskable, total = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for start in range(begin, end, BLOCK):
        weight, inside, carried = _weights(
            weights_ptr, units_ptr, start, begin, end, carried, BLOCK
        )
        largest = tl.maximum(largest, tl.max(weight, 0))
        maskable += tl.sum(inside.to(tl.int64), 0)
    largest = tl.where(largest > 0.0, largest, 1.0)
    carried = zero
    for start in range(begin, end, BLOCK):
        weight, _, carried = _weights(weights_ptr, units_ptr, start, begin, end, carried, BLOCK)
        part = tl.maximum((weight / largest * _FINEST).to(tl.int32), 1)
        part = tl.where(weight > 0.0, part, 0)
        offs = start + tl.arange(0, BLOCK)
        tl.store(parts_ptr + offs, part.to(tl.float64), mask=offs < end)
        total += tl.sum(part.to(tl.int64), 0)
    tl.store(asked_ptr + b, rate * maskable.to(tl.float64))
    tl.store(total_ptr + b, total)


@triton.jit(do_not_specialize=_VARYING)
def _share_out(
    rates_ptr, asked_ptr, total_ptr, bounds_ptr, length: tl.int64,
    PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rates in place of the parts: those that ``share`` brings to 1 are certain, until none is.

    Every sum is of integers, and so the same in any order.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = row(b, bounds_ptr, length, PACKED)
    asked, total = tl.load(asked_ptr + b), tl.load(total_ptr + b)
    level = tl.full([], _FINEST + 1, tl.float64)  # parts from here on are certain
    certain, new = tl.full([], 0, tl.int64), tl.full([], 1, tl.int64)
    share = asked
    while new > 0:
        left = tl.maximum(asked - certain.to(tl.float64), 0.0)
        share = left / tl.maximum(total, 1).to(tl.float64)
        new, limit = tl.full([], 0, tl.int64), level
        for start in range(begin, end, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            part = tl.load(rates_ptr + offs, mask=offs < end, other=0.0)
            over = (part < limit) & (part * share >= 1.0)
            new += tl.sum(over.to(tl.int64), 0)
            total -= tl.sum(tl.where(over, part.to(tl.int64), 0), 0)
            level = tl.minimum(level, tl.min(tl.where(over, part, limit), 0))
        certain += new
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        part = tl.load(rates_ptr + offs, mask=offs < end, other=0.0)
        tl.store(rates_ptr + offs, tl.where(part < level, part * share, 1.0), mask=offs < end)


def word_units(input_ids: Tensor, table: Tensor, *where: Tensor | None) -> Tensor:
    return _numbers(input_ids, *where, table=table)


def units_from_offsets(input_ids: Tensor, offset_mapping: Tensor, *where: Tensor | None) -> Tensor:
    return _numbers(input_ids, *where, offsets=offset_mapping)


def units_from_word_ids(input_ids: Tensor, word_ids: Tensor, *where: Tensor | None) -> Tensor:
    return _numbers(input_ids, *where, word_ids=word_ids)


def _numbers(
    input_ids: Tensor,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    special_tokens_mask: Tensor | None,
    maskable: Tensor | None,
    groups: Tensor | None,
    *,
    table: Tensor | None = None,
    offsets: Tensor | None = None,
    word_ids: Tensor | None = None,
) -> Tensor:
    units = _new(input_ids, cu_seqlens, -1, torch.int64)
    ids = input_ids.reshape(-1).contiguous()
    programs, bounds, length, shape = _launch(input_ids, cu_seqlens)
    if programs:
        masks = [flat_mask(mask) for mask in (attention_mask, special_tokens_mask, maskable)]
        _number[programs,](
            ids,
            *(flat_or(t, ids) for t in (bounds, *masks, table, offsets, word_ids, groups)),
            units,
            length,
            0 if maskable is None else maskable.numel(),
            0 if table is None else table.numel(),
            HAS_REAL=attention_mask is not None,
            HAS_SPECIAL=special_tokens_mask is not None,
            HAS_MASKABLE=maskable is not None and special_tokens_mask is None,
            HAS_GROUPS=groups is not None,
            OFFSETS=offsets is not None,
            WORD_IDS=word_ids is not None,
            **shape,
        )
    return units


def span_units(
    units: Tensor,
    whole: Sequence[int],
    cut: Sequence[int],
    sample_ids: Tensor,
    cu_seqlens: Tensor | None,
    seed: int,
    epoch: int,
) -> Tensor:
    spans = _new(units, cu_seqlens, -1, torch.int64)
    flat = units.reshape(-1).contiguous()
    programs, bounds, length, shape = _launch(units, cu_seqlens)
    if programs:
        _span_units[programs,](
            flat, flat_or(bounds, flat), sample_ids.contiguous(),
            *(numbers_on(units.device, tuple(t)) for t in (whole, cut)), spans, length, seed,
            epoch << 8 | SPAN, len(whole), **shape,
        )  # fmt: skip
    return spans


def rates_from_weights(
    weights: Tensor, units: Tensor, rate: float, cu_seqlens: Tensor | None
) -> Tensor:
    rates = _new(units, cu_seqlens, 0.0, torch.float64)
    flat = units.reshape(-1).contiguous()
    programs, bounds, length, shape = _launch(units, cu_seqlens)
    if programs:
        asked = rates.new_empty(programs)
        total = flat.new_empty(programs, dtype=torch.int64)
        _weigh[programs,](
            flat_or(weights, flat),
            flat,
            flat_or(bounds, flat),
            rates,
            asked,
            total,
            length,
            rate,
            **shape,
        )
        _share_out[programs,](rates, asked, total, flat_or(bounds, flat), length, **shape)
    return rates


def _new(like: Tensor, cu_seqlens: Tensor | None, outside: float, dtype: torch.dtype) -> Tensor:
    """A result to write to; ``outside`` at tokens of a packed batch that are in no sample."""
    if cu_seqlens is None:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    return torch.full(like.shape, outside, dtype=dtype, device=like.device)


def _launch(
    tokens: Tensor, cu_seqlens: Tensor | None
) -> tuple[int, Tensor | None, int, dict[str, Any]]:
    """(programs, bounds of packed rows, length of padded ones, the constants of every kernel)."""
    if cu_seqlens is None:
        bounds = None
        programs, length = tokens.shape
        typical = length
    else:
        bounds = safe_bounds(cu_seqlens, tokens.numel())
        programs, length = cu_seqlens.numel() - 1, 1
        typical = tokens.numel() // max(programs, 1)
    block = BLOCK if typical > BLOCK // 4 else BLOCK // 4
    shape = {"PACKED": bounds is not None, "BLOCK": block, "num_warps": 4 if block == BLOCK else 1}
    return programs if tokens.numel() else 0, bounds, length, shape
