"""What an exact budget ranks by on the GPU: a key for each token, then limits on a sample's keys.

Keys fill 64 bits without a sign, and are kept in int64 tensors.
"""

import triton
import triton.language as tl

from maskkernels.mask._triton_blocks import (
    block_of,
    lanes_of,
    quads_of,
    rates_at,
    threshold_of,
    tokens_at,
)
from maskkernels.rng._triton import word, words_of_quads
from maskkernels.rng.streams import UNIT

_UNIT = tl.constexpr(UNIT)

NO_KEY = tl.constexpr(-1)  # as a number without a sign, the largest
# Numbers that change from call to call, and must not compile a kernel again when they do.
_VARYING = [
    "n", "samples", "size", "seed", "epoch_word", "places", "width", "select", "mask_below",
    "random_below", "at_least_one", "kinds", "packed",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def rank_tokens(
    ids_ptr, bounds_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr, units_ptr,
    leaders_ptr, rates_ptr, keys_ptr, n: tl.int64, length: tl.int64, samples: tl.int64,
    size: tl.int64, seed: tl.int64, epoch_word: tl.int64, places: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [N]: the keys of eligible tokens, the largest one elsewhere.

    Of one rate for all: word << places | leading position. Sorted by it, the tokens of a sample
    are in the order in which a budget takes them. Of rates: (word << 32) // threshold, to which
    ``leaders`` adds the leading position.
    """
    b, inside, first, start, low, high = block_of(
        tl.program_id(0).to(tl.int64), bounds_ptr, first_ptr, n, length, samples,
        HAS_REAL, PACKED, BLOCK,
    )  # fmt: skip
    if high <= 0:
        return
    lane, ok, own = lanes_of(low, high, inside, HAS_REAL, PACKED, BLOCK)
    sample = tl.load(sample_ids_ptr + b, mask=inside, other=0)
    _, unit, eligible = tokens_at(
        start, lane, ok, own, ids_ptr, real_ptr, special_ptr, table_ptr, units_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    if HAS_UNITS:
        w = word(tl.maximum(unit, 0), sample, epoch_word | _UNIT, seed)
        leader = tl.load(leaders_ptr + start + lane, mask=ok, other=0)
    else:
        w = words_of_quads(quads_of(first, start, BLOCK), sample, epoch_word, seed)
        leader = start - first + lane
    if HAS_RATES:
        below = threshold_of(rates_at(rates_ptr + start, lane, ok))
        eligible = eligible & (below > 0)
        key = ((w.to(tl.uint64) << 32) // tl.maximum(below, 1).to(tl.uint64)).to(tl.int64)
    else:
        key = (w.to(tl.int64) << places) | leader
    tl.store(keys_ptr + start + lane, tl.where(eligible, key, NO_KEY), mask=ok)


@triton.jit
def _leading_keys(
    keys_ptr, leaders_ptr, start, first, end, places,
    HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(uint64 keys of a block, which of them count: those of tokens that lead their unit)."""
    lane = tl.arange(0, BLOCK)
    ok = lane < tl.minimum(end - start, BLOCK).to(tl.int32)
    key = tl.load(keys_ptr + start + lane, mask=ok, other=NO_KEY)
    counts = key != NO_KEY
    if HAS_UNITS:
        if HAS_RATES:
            leader = tl.load(leaders_ptr + start + lane, mask=ok, other=0)
        else:
            leader = key & ((tl.full([], 1, tl.int64) << places) - 1)
        counts = counts & (leader == start - first + lane)
    return key.to(tl.uint64), counts


@triton.jit
def _chances(rates_ptr, start, counts, BLOCK: tl.constexpr):
    """The sum of the thresholds of those that count."""
    chance = threshold_of(rates_at(rates_ptr + start, tl.arange(0, BLOCK), counts))
    return tl.sum(tl.where(counts, chance, 0), 0)


@triton.jit
def _wanted(
    which, eligible, chances, select, mask_below, random_below, at_least_one,
    HAS_RATES: tl.constexpr,
):  # fmt: skip
    """How many keys are within the limit."""
    total = chances
    if not HAS_RATES:
        total = eligible * select
    k = (total + (1 << 31)) >> 32
    k = tl.maximum(k, tl.minimum(eligible, at_least_one))
    share = tl.where(which == 1, mask_below, random_below)
    return tl.where(which == 0, k, (k * share + (1 << 31)) >> 32)


@triton.jit
def _tied(key, counts, limit, left, BLOCK: tl.constexpr):
    """(how many keys are the limit, 1 + the last of the first ``left`` of them or 0)."""
    tied = (counts & (key == limit)).to(tl.int32)
    taken = (tied > 0) & (tl.cumsum(tied, 0) <= left)
    return tl.sum(tied, 0), tl.max(tl.where(taken, tl.arange(1, BLOCK + 1), 0), 0)


@triton.jit(do_not_specialize=[*_VARYING, "length"])
def limit_keys(
    keys_ptr, leaders_ptr, rates_ptr, first_ptr, bounds_ptr, limits_ptr, length: tl.int64,
    packed: tl.int32, kinds: tl.int32, select: tl.int64, mask_below: tl.int64,
    random_below: tl.int64, at_least_one: tl.int64, places: tl.int64, width: tl.int32,
    HAS_REAL: tl.constexpr, HAS_UNITS: tl.constexpr, HAS_RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [B, 3, 2]: limits on what is selected, made the mask token, made mask token or random.

    Keys below the first number are within a limit; where rates tie keys, so are those equal to it
    whose leading position is below the second. One program a limit, ``kinds`` of them a row.

    A row of at most a block is read once. Its limit is found by halving: any number will do that
    has as many keys below it as are wanted, and with keys as random as words some number of few
    leading bits has, so that about log2 of the row's tokens steps suffice of ``width``, the bits
    of a key. A longer row is read once for eight bits of the limit each.
    """
    p = tl.program_id(0)
    which = p % kinds
    b = (p // kinds).to(tl.int64)
    begin = tl.load(bounds_ptr + b, mask=packed != 0, other=0).to(tl.int64)
    end = tl.load(bounds_ptr + b + 1, mask=packed != 0, other=0).to(tl.int64)
    begin = tl.where(packed != 0, begin, b * length)
    end = tl.where(packed != 0, end, begin + length)
    first = begin
    if HAS_REAL:
        first = tl.load(first_ptr + b)
    limit, before = tl.full([], 0, tl.uint64), tl.full([], 0, tl.int64)
    if end - begin <= BLOCK:
        key, counts = _leading_keys(
            keys_ptr, leaders_ptr, begin, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
        )
        key = tl.where(counts, key, limit - 1)
        eligible, chances = tl.sum(counts.to(tl.int32), 0).to(tl.int64), tl.full([], 0, tl.int64)
        if HAS_RATES:
            chances = _chances(rates_ptr, begin, counts, BLOCK)
        k = _wanted(
            which, eligible, chances, select, mask_below, random_below, at_least_one,
            HAS_RATES,
        )  # fmt: skip
        one, low = tl.full([], 1, tl.uint64), tl.full([], 0, tl.uint64)
        bits, fewer = width, tl.full([], 0, tl.int32)
        found = (k <= 0) | (k >= eligible)
        limit = tl.where(k > 0, limit - 1, limit)  # all of them, or none
        while (found == 0) & (bits > 0):
            bits -= 1
            middle = low | (one << bits.to(tl.uint64))
            below = tl.sum((key < middle).to(tl.int32), 0)
            found = below == k
            limit = tl.where(found, middle, limit)
            fewer = tl.where(below < k, below, fewer)
            low = tl.where(below < k, middle, low)
        if HAS_RATES:
            _, last = _tied(key, counts, low, k - fewer, BLOCK)
            limit = tl.where(found, limit, low)
            before = tl.where(found, before, begin - first + last)
    else:
        eligible, chances = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
        for start in range(begin, end, BLOCK):
            _, counts = _leading_keys(
                keys_ptr, leaders_ptr, start, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
            )
            eligible += tl.sum(counts.to(tl.int32), 0)
            if HAS_RATES:
                chances += _chances(rates_ptr, start, counts, BLOCK)
        k = _wanted(
            which, eligible, chances, select, mask_below, random_below, at_least_one, HAS_RATES
        )
        left, passes = k, tl.cdiv(width, 8)
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
            under = up_to < left
            limit = (limit << 8) | tl.sum(under.to(tl.int64), 0).to(tl.uint64)
            left -= tl.max(tl.where(under, up_to, 0), 0)
        if HAS_RATES:  # of those at the limit the ``left`` first ones
            for start in range(begin, end, BLOCK):
                key, counts = _leading_keys(
                    keys_ptr, leaders_ptr, start, first, end, places, HAS_UNITS, HAS_RATES, BLOCK
                )
                tied, last = _tied(key, counts, limit, left, BLOCK)
                before = tl.where(last > 0, start - first + last, before)
                left -= tied
        else:  # that is one
            limit += tl.minimum(k, 1).to(tl.uint64)
    place = limits_ptr + (b * 3 + which) * 2
    tl.store(place, limit.to(tl.int64))
    if HAS_RATES:
        tl.store(place + 1, before)


@triton.jit
def is_within(key, leader, limits_ptr, b, which, inside, HAS_RATES: tl.constexpr):
    """Whether keys and, where rates tie them, the positions that lead are within a limit."""
    place = limits_ptr + (b * 3 + which) * 2
    limit = tl.load(place, mask=inside, other=0).to(tl.uint64)
    within = key < limit
    if HAS_RATES:
        before = tl.load(place + 1, mask=inside, other=0)
        within = within | ((key == limit) & (leader < before))
    return within
