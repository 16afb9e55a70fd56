"""Masking on the GPU: one program for a block of one sample's tokens, one Philox for four of them.

24 bytes a token are moved (int64 ids), and those of each mask that is given; twice the ids where
their hash is the sample id. An exact budget takes two kernels before: keys that order the tokens
of a sample, and limits on them. Positions take one kernel after.

A block is a warp's: what its lanes exchange, words above all, they shuffle, and no barrier waits.

No kernel here waits for the host, and no address depends on unchecked data: a token outside every
sample, or with an id outside the table, is copied and never masked.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.mask._triton_blocks import (
    block_of,
    lanes_of,
    quads_of,
    rates_at,
    threshold_of,
    tokens_at,
)
from maskkernels.mask._triton_budget import NO_KEY, is_within, limit_keys, rank_tokens
from maskkernels.mask.job import MaskJob
from maskkernels.mask.leaders import flat_leaders, leaders
from maskkernels.mask.policy import thresholds
from maskkernels.rng._triton import hash_samples, word, words_of_quads
from maskkernels.rng.streams import REPLACEMENT, UNIT
from maskkernels.tokens._triton import flat_mask, flat_or, layout_of
from maskkernels.tokens.eligibility import may_mask
from maskkernels.tokens.layout import layout

BLOCK = 256  # tokens of a program, half as many where rows are shorter
LIMITS = ((512, 1), (2048, 4))  # tokens a program keeps of a row whose limits it finds, and warps
_REPLACEMENT, _UNIT = tl.constexpr(REPLACEMENT), tl.constexpr(UNIT)
# Numbers that change from call to call, and must not compile a kernel again when they do.
_VARYING = [
    "n", "samples", "size", "replacements", "seed", "epoch_word", "mask_token_id", "ignore_index",
    "select", "mask_below", "random_below", "capacity", "replaces", "has_list", "counting",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def _mask_tokens(
    ids_ptr, bounds_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr,
    units_ptr, replacement_ptr, rates_ptr, leaders_ptr, keys_ptr, limits_ptr, out_ptr, labels_ptr,
    counts_ptr, n: tl.int64, length: tl.int64, samples: tl.int64, size: tl.int64,
    replacements: tl.int64, seed: tl.int64, epoch_word: tl.int64, mask_token_id: tl.int64,
    ignore_index: tl.int64, select: tl.int64, mask_below: tl.int64, random_below: tl.int64,
    mask_share: tl.float64, both: tl.float64, replaces: tl.int32, has_list: tl.int32,
    counting: tl.int32,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr,
    BUDGET: tl.constexpr, PER_UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    b, inside, first, start, low, high = block_of(
        p, bounds_ptr, first_ptr, n, length, samples, HAS_REAL, PACKED, BLOCK
    )
    if high <= 0:
        tl.store(counts_ptr + p, 0, mask=counting != 0)
        return
    lane, ok, own = lanes_of(low, high, inside, HAS_REAL, PACKED, BLOCK)
    sample = tl.load(sample_ids_ptr + b, mask=inside, other=0)
    ids, unit, eligible = tokens_at(
        start, lane, ok, own, ids_ptr, real_ptr, special_ptr, table_ptr, units_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    unit = tl.maximum(unit, 0)
    quads = quads_of(first, start, BLOCK)
    if HAS_RATES and not BUDGET:
        p_token = rates_at(rates_ptr + start, lane, ok)
        select = threshold_of(p_token)
        if not HAS_UNITS:
            mask_below = threshold_of(p_token * mask_share)
            random_below = threshold_of(p_token * both)
    if BUDGET:
        key = tl.load(keys_ptr + start + lane, mask=ok, other=NO_KEY).to(tl.uint64)
        leader = start - first + lane
        if HAS_RATES and HAS_UNITS:
            leader = tl.load(leaders_ptr + start + lane, mask=ok, other=0)
        selected = eligible & is_within(key, leader, limits_ptr, b, 0, inside, HAS_RATES)
    elif HAS_UNITS:
        selected = eligible & (word(unit, sample, epoch_word | _UNIT, seed).to(tl.int64) < select)
    if BUDGET and (PER_UNIT or not HAS_UNITS):
        masked = is_within(key, leader, limits_ptr, b, 1, inside, HAS_RATES)
        replaced = is_within(key, leader, limits_ptr, b, 2, inside, HAS_RATES)
    else:
        if PER_UNIT and HAS_UNITS:
            r = word(unit, sample, epoch_word, seed).to(tl.int64)
        else:
            r = words_of_quads(quads, sample, epoch_word, seed).to(tl.int64)
        if not BUDGET and not HAS_UNITS:
            selected = eligible & (r < select)
        masked = r < mask_below
        replaced = r < random_below
    replaced = replaced & (masked == 0)
    seen = tl.where(masked, mask_token_id, ids)
    if replaces != 0:  # every quad: at 1.5% of the tokens hardly a warp has none
        new = words_of_quads(quads, sample, epoch_word | _REPLACEMENT, seed).to(tl.int64)
        new = (new * replacements) >> 32
        if has_list != 0:
            new = tl.load(replacement_ptr + new, mask=selected & replaced, other=0).to(tl.int64)
        seen = tl.where(replaced, new, seen)
    tl.store(out_ptr + start + lane, tl.where(selected, seen, ids), mask=ok)
    tl.store(labels_ptr + start + lane, tl.where(selected, ids, ignore_index), mask=ok)
    if counting != 0:
        tl.store(counts_ptr + p, tl.sum((selected & (ids != ignore_index)).to(tl.int32), 0))


@triton.jit(do_not_specialize=_VARYING)
def _positions(
    labels_ptr, bounds_ptr, first_ptr, ends_ptr, count_ptr, positions_ptr, n: tl.int64,
    length: tl.int64, samples: tl.int64, capacity: tl.int64, ignore_index: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Indices of labelled tokens, then -1; ends[p] is how many there are up to block p's end."""
    p, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    count = tl.load(ends_ptr + programs - 1)
    tl.store(count_ptr, count, mask=p == 0)
    for filled in range(p * BLOCK, capacity, programs * BLOCK):
        slot = filled + lane
        unused = (slot < capacity) & (slot >= count)
        tl.store(positions_ptr + slot, tl.full([BLOCK], -1, tl.int64), mask=unused)
    _, inside, _, start, low, high = block_of(
        p, bounds_ptr, first_ptr, n, length, samples, HAS_REAL, PACKED, BLOCK
    )
    if high <= 0:
        return
    _, ok, _ = lanes_of(low, high, inside, HAS_REAL, PACKED, BLOCK)
    labels = tl.load(labels_ptr + start + lane, mask=ok, other=0).to(tl.int64)
    labelled = ok & (labels != ignore_index)
    up_to = tl.cumsum(labelled.to(tl.int32), 0)
    slot = tl.load(ends_ptr + p) - tl.sum(labelled.to(tl.int32), 0) + up_to - 1
    tl.store(positions_ptr + slot, start + lane, mask=labelled & (slot < capacity))


class _Launch(NamedTuple):
    """What the kernels of one call share: arguments in their order, and constants."""

    where: tuple[Tensor, ...]  # ids, bounds, sample_ids, first, real, special, table, units
    numbers: tuple[int, ...]  # n, length, samples, size
    programs: int
    layout: dict[str, bool]
    given: dict[str, bool]
    shape: dict[str, int]


def mask_tokens(job: MaskJob) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masked = torch.empty_like(job.input_ids, memory_format=torch.contiguous_format)
    labels = torch.empty_like(masked)
    launch = _prepare(job)
    ids = launch.where[0]
    if not ids.numel():
        return masked, labels, *_found(job, launch, labels, None)
    leader = keys = limits = ids  # not read without a budget
    if job.budget:
        leader, keys, limits = _rank(job, launch)
    select, mask_below, random_below = thresholds(job.rate, job.mask_share, job.random_share)
    if job.units is not None:
        mask_below, random_below = thresholds(1.0, job.mask_share, job.random_share)[1:]
    replacement = job.replacement_ids
    counts = torch.empty(launch.programs, dtype=torch.int32, device=ids.device)
    _mask_tokens[launch.programs,](
        *launch.where, flat_or(replacement, ids), flat_or(job.rates, ids), leader, keys, limits,
        masked, labels, counts, *launch.numbers,
        job.vocab_size if replacement is None else replacement.numel(),
        job.seed, job.epoch << 8, job.mask_token_id, job.ignore_index, select, mask_below,
        random_below, job.mask_share, min(job.mask_share + job.random_share, 1.0),
        int(job.random_share > 0), int(replacement is not None), int(job.capacity >= 0),
        **launch.layout, **launch.given, HAS_RATES=job.rates is not None, BUDGET=job.budget,
        PER_UNIT=job.per_unit and job.units is not None, **launch.shape,
    )  # fmt: skip
    return masked, labels, *_found(job, launch, labels, counts)


def _prepare(job: MaskJob) -> _Launch:
    ids = job.input_ids.reshape(-1).contiguous()
    batch = layout_of(job.input_ids, job.cu_seqlens, job.attention_mask)
    sample_ids = job.sample_ids
    sample_ids = hash_samples(ids, batch) if sample_ids is None else sample_ids.contiguous()
    special, table = flat_mask(job.special_tokens_mask), flat_mask(job.maskable)
    size = job.vocab_size if table is None else table.numel()
    absent = (batch.bounds, sample_ids, batch.first, batch.real, special, table, job.units)
    packed = batch.bounds is not None
    n, length = ids.numel(), batch.length
    typical = n // max(batch.samples, 1) if packed else length
    block = BLOCK if typical > BLOCK // 2 else BLOCK // 2
    if packed:  # see block_of
        programs = (n + 4 * (batch.samples + 2)) // block + batch.samples + 2
    else:
        programs = batch.samples * triton.cdiv(length + 3 * (batch.real is not None), block)
    return _Launch(
        (ids, *(flat_or(tensor, ids) for tensor in absent)),
        (n, length, batch.samples, size),
        programs,
        {"PACKED": packed, "HAS_REAL": batch.real is not None},
        {
            "HAS_SPECIAL": special is not None,
            "HAS_TABLE": table is not None and special is None,
            "HAS_UNITS": job.units is not None,
        },
        {"BLOCK": block, "num_warps": 1},
    )


def _rank(job: MaskJob, launch: _Launch) -> tuple[Tensor, Tensor, Tensor]:
    """What an exact budget ranks by: leading positions of units, keys, and the limits on them."""
    ids, bounds, _, first, *_ = launch.where
    n, length, samples, _ = launch.numbers
    longest = n if launch.layout["PACKED"] else length  # all that is known without a look
    if longest >= 1 << 31:
        raise ValueError(
            f"selection='budget' takes rows of fewer than 2**31 tokens on a GPU, got {longest}"
        )
    places = (longest - 1).bit_length()
    keys = torch.empty(n, dtype=torch.int64, device=ids.device)
    limits = torch.empty(samples, 3, 2, dtype=torch.int64, device=ids.device)
    leader, rates = ids, flat_or(job.rates, ids)
    if job.units is not None:  # a sort, which torch does best
        _, sample, position, real = layout(job.input_ids, job.cu_seqlens, job.attention_mask)
        unit = job.units.reshape(-1).long()
        eligible = real & (unit >= 0)
        eligible &= may_mask(job.input_ids.reshape(-1), job.special_tokens_mask, job.maskable)
        leader = leaders(sample, position, unit, eligible)
        if job.rates is not None:
            rates = rates[flat_leaders(position, leader, eligible)]
    weighted = job.rates is not None
    rank_tokens[launch.programs,](
        *launch.where, leader, rates, keys, *launch.numbers, job.seed, job.epoch << 8, places,
        **launch.layout, **launch.given, HAS_RATES=weighted, **launch.shape,
    )  # fmt: skip
    kinds = 3 if job.units is None or job.per_unit else 1
    block, warps = LIMITS[n > samples * LIMITS[0][0]]
    if samples:
        limit_keys[samples * kinds,](
            keys, leader, rates, first, bounds, limits, length, int(launch.layout["PACKED"]), kinds,
            thresholds(job.rate, 1.0, 0.0)[0],
            *thresholds(1.0, job.mask_share, job.random_share)[1:], int(job.at_least_one), places,
            64 if weighted else 32 + places, HAS_REAL=launch.layout["HAS_REAL"],
            HAS_UNITS=job.units is not None, HAS_RATES=weighted, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return leader, keys, limits


def _found(
    job: MaskJob, launch: _Launch, labels: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(count, positions) of the labelled tokens; ``counts`` has them by program."""
    new: dict[str, Any] = {"dtype": torch.int64, "device": labels.device}
    if job.capacity < 0:
        return torch.empty(0, **new), torch.empty(0, **new)
    if counts is None:
        return torch.zeros((), **new), torch.full((job.capacity,), -1, **new)
    count, positions = torch.empty((), **new), torch.empty(job.capacity, **new)
    bounds, first = launch.where[1], launch.where[3]
    _positions[launch.programs,](
        labels, bounds, first, counts.cumsum(0), count, positions, *launch.numbers[:3],
        job.capacity, job.ignore_index, **launch.layout, **launch.shape,
    )  # fmt: skip
    return count, positions
