"""Masking on the GPU: one program for a block of one sample's tokens, one Philox for four of them.

A block begins a multiple of four tokens from the sample's first real one, so that the four words
of a Philox call fall on consecutive tokens whatever the padding. 24 bytes a token are moved (int64
ids), and those of each mask that is given; twice the ids where their hash is the sample id.

An exact budget takes two kernels before: keys that order the tokens of a sample, and limits on
them. Keys fill 64 bits without a sign, which stand in int64 tensors. Positions take one kernel
after.

No kernel here waits for the host, and no address depends on unchecked data: a token outside every
sample, or with an id outside the table, is copied and never masked.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.mask.job import MaskJob
from maskkernels.mask.leaders import flat_leaders, leaders
from maskkernels.mask.policy import thresholds
from maskkernels.rng._triton import (
    eligible_at,
    flat_mask,
    flat_or,
    hash_samples,
    layout_of,
    row,
    word,
    words_of_quads,
)
from maskkernels.rng.streams import REPLACEMENT, UNIT
from maskkernels.tokens.eligibility import may_mask
from maskkernels.tokens.layout import layout

BLOCK = 512  # tokens of a program, fewer where rows are shorter
LIMITS_BLOCK = 1024
_REPLACEMENT, _UNIT = tl.constexpr(REPLACEMENT), tl.constexpr(UNIT)
_NO_KEY = tl.constexpr(-1)  # as a number without a sign, the largest
# Numbers that change from call to call, and must not compile a kernel anew when they do.
_VARYING = [
    "n", "samples", "size", "replacements", "seed", "epoch_word", "mask_token_id", "ignore_index",
    "select", "mask_below", "random_below", "places", "passes", "capacity",
]  # fmt: skip


@triton.jit
def _block(
    p, bounds_ptr, first_ptr, n, length, samples,
    HAS_REAL: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What program p works on: (sample, inside, first, start, begin, end).

    Its tokens are start..start + BLOCK - 1, as far as they are in begin..end - 1; start - first is
    a multiple of four. Of a packed batch what is before the first sample and after the last
    are two more ranges, of no sample: not ``inside``. Range r begins with block number
    (begin + 4 r) // BLOCK + r, which leaves enough numbers for every range before it, and up to
    one too many: those blocks are empty.
    """
    if PACKED:
        low, high = tl.full([], 0, tl.int64), samples + 2
        while high - low > 1:
            middle = (low + high) // 2
            begin = tl.load(bounds_ptr + middle - 1)
            before = (begin + 4 * middle) // BLOCK + middle <= p
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle)
        b = low - 1
        begin = tl.load(bounds_ptr + b, mask=b >= 0, other=0)
        end = tl.load(bounds_ptr + low, mask=low <= samples, other=n)
        j = p - (begin + 4 * low) // BLOCK - low
        inside = (b >= 0) & (b < samples)
    else:
        blocks = tl.cdiv(length + 3 if HAS_REAL else length, BLOCK).to(tl.int32)
        b = (p.to(tl.int32) // blocks).to(tl.int64)  # fewer than 2^31 programs: a cheap division
        j = p - b * blocks
        begin = b * length
        end = begin + length
        inside = b >= 0
    first = begin
    if HAS_REAL:
        first = tl.load(first_ptr + b, mask=inside, other=0)
    start = begin - ((begin - first) & 3) + j * BLOCK
    return b, inside, first, start, begin, end


@triton.jit
def _quads(first, start, BLOCK: tl.constexpr):
    """The quads of positions of a block. Negative before the first real token: words unused."""
    return ((start - first) >> 2) + tl.arange(0, BLOCK // 4)


@triton.jit
def _rates(rates_ptr, offs, ok):
    """In float64, as the contract says; a rate of NaN is none."""
    p = tl.load(rates_ptr + offs, mask=ok, other=0).to(tl.float64)
    return tl.where(p > 0, tl.where(p < 1, p, 1), 0)


@triton.jit
def _threshold(p):
    return (p * 4294967296.0).to(tl.int64)


@triton.jit(do_not_specialize=_VARYING)
def _keys(
    ids_ptr, bounds_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr, units_ptr,
    leaders_ptr, rates_ptr, keys_ptr, n: tl.int64, length: tl.int64, samples: tl.int64,
    size: tl.int64, seed: tl.int64, epoch_word: tl.int64, places: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [N]: the keys of eligible tokens, the largest one elsewhere.

    Of one rate for all: word << places | leading position. Sorted by it, the tokens of a sample
    stand in the order in which a budget takes them. Of rates: (word << 32) // threshold, which
    takes the leading position beside it.
    """
    b, inside, first, start, begin, end = _block(
        tl.program_id(0).to(tl.int64), bounds_ptr, first_ptr, n, length, samples,
        HAS_REAL, PACKED, BLOCK,
    )  # fmt: skip
    if start >= end:
        return
    offs = start + tl.arange(0, BLOCK)
    ok = (offs >= begin) & (offs < end)
    sample = tl.load(sample_ids_ptr + b, mask=inside, other=0)
    ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
    unit = ids
    if HAS_UNITS:
        unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
    eligible = eligible_at(
        offs, ok & (offs < tl.where(inside, end, begin)), ids, unit, real_ptr, special_ptr,
        table_ptr, size, HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    if HAS_UNITS:
        w = word(tl.maximum(unit, 0), sample, epoch_word | _UNIT, seed)
        leader = tl.load(leaders_ptr + offs, mask=ok, other=0)
    else:
        w = words_of_quads(_quads(first, start, BLOCK), sample, epoch_word, seed)
        leader = offs - first
    if HAS_RATES:
        below = _threshold(_rates(rates_ptr, offs, ok))
        eligible = eligible & (below > 0)
        key = ((w.to(tl.uint64) << 32) // tl.maximum(below, 1).to(tl.uint64)).to(tl.int64)
    else:
        key = (w.to(tl.int64) << places) | leader
    tl.store(keys_ptr + offs, tl.where(eligible, key, _NO_KEY), mask=ok)


@triton.jit
def _leading_keys(
    keys_ptr, leaders_ptr, start, first, end, places,
    HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(uint64 keys of a block, which of them count: those of tokens that stand for their unit)."""
    offs = start + tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + offs, mask=offs < end, other=_NO_KEY)
    counts = key != _NO_KEY
    if HAS_UNITS:
        if HAS_RATES:
            leader = tl.load(leaders_ptr + offs, mask=offs < end, other=0)
        else:
            leader = key & ((tl.full([], 1, tl.int64) << places) - 1)
        counts = counts & (leader == offs - first)
    return key.to(tl.uint64), counts


@triton.jit(do_not_specialize=_VARYING)
def _limits(
    keys_ptr, leaders_ptr, rates_ptr, first_ptr, bounds_ptr, limits_ptr, length: tl.int64,
    select: tl.int64, mask_below: tl.int64, random_below: tl.int64, places: tl.int64,
    passes: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, AT_LEAST_ONE: tl.constexpr,
    HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [B, 3, 2]: limits on what is selected, made the mask token, made mask token or random.

    Keys below the first number are within a limit; where rates tie keys, so are those equal to it
    whose leading position is below the second. A radix selection: ``passes`` times over the keys of
    a sample, for eight bits of the limit each, and once more for that position.
    """
    b = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    begin, end = row(b, bounds_ptr, length, PACKED)
    first = begin
    if HAS_REAL:
        first = tl.load(first_ptr + b)
    eligible, total = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for start in range(begin, end, BLOCK):
        _, counts = _leading_keys(
            keys_ptr, leaders_ptr, start, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
        )
        eligible += tl.sum(counts.to(tl.int64), 0)
        if HAS_RATES:
            offs = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.where(counts, _threshold(_rates(rates_ptr, offs, counts)), 0), 0)
    if not HAS_RATES:
        total = eligible * select
    k = (total + (1 << 31)) >> 32
    if AT_LEAST_ONE:
        k = tl.maximum(k, tl.minimum(eligible, 1))
    if which == 1:
        k = (k * mask_below + (1 << 31)) >> 32
    if which == 2:
        k = (k * random_below + (1 << 31)) >> 32
    limit, left = tl.full([], 0, tl.uint64), k
    for done in range(passes):
        shift = ((passes - 1 - done) * 8).to(tl.uint64)
        seen = tl.zeros([256], tl.int32)
        for start in range(begin, end, BLOCK):
            key, counts = _leading_keys(
                keys_ptr, leaders_ptr, start, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
            )
            digits = key >> shift
            counts = counts & ((digits >> 8) == limit)
            seen += tl.histogram((digits & 255).to(tl.int32), 256, mask=counts)
        up_to = tl.cumsum(seen, 0)
        below = up_to < left
        limit = (limit << 8) | tl.sum(below.to(tl.int64), 0).to(tl.uint64)
        left -= tl.max(tl.where(below, up_to, 0), 0)
    place = limits_ptr + (b * 3 + which) * 2
    if HAS_RATES:  # of those at the limit the ``left`` first ones
        before = tl.full([], 0, tl.int64)
        for start in range(begin, end, BLOCK):
            key, counts = _leading_keys(
                keys_ptr, leaders_ptr, start, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
            )
            tied = (counts & (key == limit)).to(tl.int32)
            taken = (tied > 0) & (tl.cumsum(tied, 0) <= left)
            last = tl.max(tl.where(taken, tl.arange(1, BLOCK + 1), 0), 0)
            before = tl.where(last > 0, start - first + last, before)
            left -= tl.sum(tied, 0)
        tl.store(place + 1, before)
    else:  # that is one
        limit += tl.minimum(k, 1).to(tl.uint64)
    tl.store(place, limit.to(tl.int64))


@triton.jit
def _within(key, leader, limits_ptr, b, which, inside, HAS_RATES: tl.constexpr):
    """Whether keys and, where rates tie them, the positions that lead are within a limit."""
    place = limits_ptr + (b * 3 + which) * 2
    limit = tl.load(place, mask=inside, other=0).to(tl.uint64)
    within = key < limit
    if HAS_RATES:
        before = tl.load(place + 1, mask=inside, other=0)
        within = within | ((key == limit) & (leader < before))
    return within


@triton.jit(do_not_specialize=_VARYING)
def _mask_tokens(
    ids_ptr, bounds_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr,
    units_ptr, replacement_ptr, rates_ptr, leaders_ptr, keys_ptr, limits_ptr, out_ptr, labels_ptr,
    counts_ptr, n: tl.int64, length: tl.int64, samples: tl.int64, size: tl.int64,
    replacements: tl.int64, seed: tl.int64, epoch_word: tl.int64, mask_token_id: tl.int64,
    ignore_index: tl.int64, select: tl.int64, mask_below: tl.int64, random_below: tl.int64,
    mask_share: tl.float64, both: tl.float64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_REPLACEMENT: tl.constexpr, HAS_UNITS: tl.constexpr,
    HAS_RATES: tl.constexpr, BUDGET: tl.constexpr, PER_UNIT: tl.constexpr,
    RANDOM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    b, inside, first, start, begin, end = _block(
        p, bounds_ptr, first_ptr, n, length, samples, HAS_REAL, PACKED, BLOCK
    )
    if start >= end:
        return
    offs = start + tl.arange(0, BLOCK)
    ok = (offs >= begin) & (offs < end)
    sample = tl.load(sample_ids_ptr + b, mask=inside, other=0)
    ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
    unit = ids
    if HAS_UNITS:
        unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
    eligible = eligible_at(
        offs, ok & (offs < tl.where(inside, end, begin)), ids, unit, real_ptr, special_ptr,
        table_ptr, size, HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    unit = tl.maximum(unit, 0)
    quads = _quads(first, start, BLOCK)
    if HAS_RATES and not BUDGET:
        p_token = _rates(rates_ptr, offs, ok)
        select = _threshold(p_token)
        if not HAS_UNITS:
            mask_below = _threshold(p_token * mask_share)
            random_below = _threshold(p_token * both)
    if BUDGET:
        key = tl.load(keys_ptr + offs, mask=ok, other=_NO_KEY).to(tl.uint64)
        leader = offs - first
        if HAS_RATES and HAS_UNITS:
            leader = tl.load(leaders_ptr + offs, mask=ok, other=0)
        selected = eligible & _within(key, leader, limits_ptr, b, 0, inside, HAS_RATES)
    elif HAS_UNITS:
        selected = eligible & (word(unit, sample, epoch_word | _UNIT, seed).to(tl.int64) < select)
    if BUDGET and (PER_UNIT or not HAS_UNITS):
        masked = _within(key, leader, limits_ptr, b, 1, inside, HAS_RATES)
        replaced = _within(key, leader, limits_ptr, b, 2, inside, HAS_RATES)
    else:
        if PER_UNIT and HAS_UNITS:
            r = word(unit, sample, epoch_word, seed).to(tl.int64)
        else:
            r = words_of_quads(quads, sample, epoch_word, seed).to(tl.int64)
        if not BUDGET and not HAS_UNITS:
            selected = eligible & (r < select)
        masked = r < mask_below
        replaced = r < random_below
    seen = ids
    if RANDOM:  # every quad: at 1.5% of the tokens hardly a warp has none
        new = words_of_quads(quads, sample, epoch_word | _REPLACEMENT, seed).to(tl.int64)
        new = (new * replacements) >> 32
        if HAS_REPLACEMENT:
            drawn = selected & replaced & (masked == 0)
            new = tl.load(replacement_ptr + new, mask=drawn, other=0).to(tl.int64)
        seen = tl.where(replaced, new, ids)
    seen = tl.where(masked, mask_token_id, seen)
    tl.store(out_ptr + offs, tl.where(selected, seen, ids), mask=ok)
    tl.store(labels_ptr + offs, tl.where(selected, ids, ignore_index), mask=ok)
    if COUNT:
        tl.store(counts_ptr + p, tl.sum((selected & (ids != ignore_index)).to(tl.int32), 0))


@triton.jit(do_not_specialize=_VARYING)
def _positions(
    labels_ptr, bounds_ptr, first_ptr, ends_ptr, positions_ptr, n: tl.int64, length: tl.int64,
    samples: tl.int64, capacity: tl.int64, ignore_index: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Indices of labelled tokens; ends[p] is how many there are up to the end of block p."""
    p = tl.program_id(0).to(tl.int64)
    _, _, _, start, begin, end = _block(
        p, bounds_ptr, first_ptr, n, length, samples, HAS_REAL, PACKED, BLOCK
    )
    if start >= end:
        return
    offs = start + tl.arange(0, BLOCK)
    ok = (offs >= begin) & (offs < end)
    labels = tl.load(labels_ptr + offs, mask=ok, other=0).to(tl.int64)
    labelled = ok & (labels != ignore_index)
    up_to = tl.cumsum(labelled.to(tl.int32), 0)
    slot = tl.load(ends_ptr + p) - tl.sum(labelled.to(tl.int32), 0) + up_to - 1
    tl.store(positions_ptr + slot, offs, mask=labelled & (slot < capacity))


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
    counts = None
    if job.capacity >= 0:  # empty blocks write nothing
        counts = torch.zeros(launch.programs, dtype=torch.int32, device=ids.device)
    _mask_tokens[launch.programs,](
        *launch.where, flat_or(replacement, ids), flat_or(job.rates, ids), leader, keys, limits,
        masked, labels, flat_or(counts, ids), *launch.numbers,
        job.vocab_size if replacement is None else replacement.numel(),
        job.seed, job.epoch << 8, job.mask_token_id, job.ignore_index, select, mask_below,
        random_below, job.mask_share, min(job.mask_share + job.random_share, 1.0),
        **launch.layout, **launch.given, HAS_REPLACEMENT=replacement is not None,
        HAS_RATES=job.rates is not None, BUDGET=job.budget, PER_UNIT=job.per_unit,
        RANDOM=job.random_share > 0, COUNT=counts is not None, **launch.shape,
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
    block = min(max(triton.next_power_of_2(typical), 128), BLOCK)
    if packed:  # see _block
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
            "HAS_TABLE": table is not None,
            "HAS_UNITS": job.units is not None,
        },
        {"BLOCK": block, "num_warps": block // 128},
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
    _keys[launch.programs,](
        *launch.where, leader, rates, keys, *launch.numbers, job.seed, job.epoch << 8, places,
        **launch.layout, **launch.given, HAS_RATES=weighted, **launch.shape,
    )  # fmt: skip
    if samples:
        _limits[samples, 3 if job.units is None or job.per_unit else 1](
            keys, leader, rates, first, bounds, limits, length,
            thresholds(job.rate, 1.0, 0.0)[0],
            *thresholds(1.0, job.mask_share, job.random_share)[1:], places,
            8 if weighted else triton.cdiv(32 + places, 8), **launch.layout,
            AT_LEAST_ONE=job.at_least_one, HAS_UNITS=job.units is not None, HAS_RATES=weighted,
            BLOCK=LIMITS_BLOCK,
        )  # fmt: skip
    return leader, keys, limits


def _found(
    job: MaskJob, launch: _Launch, labels: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(count, positions) of the labelled tokens; ``counts`` has them by program."""
    new: dict[str, Any] = {"dtype": torch.int64, "device": labels.device}
    if job.capacity < 0:
        return torch.empty(0, **new), torch.empty(0, **new)
    positions = torch.full((job.capacity,), -1, **new)
    if counts is None:
        return torch.zeros((), **new), positions
    if job.capacity:
        bounds, first = launch.where[1], launch.where[3]
        _positions[launch.programs,](
            labels, bounds, first, counts.cumsum(0), positions, *launch.numbers[:3], job.capacity,
            job.ignore_index, **launch.layout, **launch.shape,
        )  # fmt: skip
    return counts.sum(), positions
