"""How the masking kernels divide a batch: one program for a block of one sample's tokens.

A block begins a multiple of four tokens from the sample's first real one, so that the four words
of a Philox call fall on consecutive tokens whatever the padding. Tokens of a block are counted in
int32 from its start; only the start is an int64.
"""

import triton
import triton.language as tl

from maskkernels.tokens._triton import eligible_at


@triton.jit
def block_of(
    p, bounds_ptr, first_ptr, n, length, samples,
    HAS_REAL: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What program p works on: (sample, inside, first, start, low, high).

    Its tokens are start + i for low <= i < high; start - first is a multiple of four, and none are
    left where high <= 0. Of a packed batch what is before the first sample and after the last are
    two more ranges, of no sample: not ``inside``. Range r begins with block number
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
    before = tl.maximum(begin - start, 0).to(tl.int32)  # at most 3
    return b, inside, first, start, before, tl.minimum(end - start, BLOCK).to(tl.int32)


@triton.jit
def lanes_of(low, high, inside, HAS_REAL: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """(lanes of a block, which of them are tokens of it, which of those are in a sample)."""
    lane = tl.arange(0, BLOCK)
    ok = lane < high
    if HAS_REAL:  # nothing else begins a block before its first token
        ok = ok & (lane >= low)
    own = ok
    if PACKED:
        own = ok & (lane < tl.where(inside, high, 0))
    return lane, ok, own


@triton.jit
def tokens_at(
    start, lane, ok, own, ids_ptr, real_ptr, special_ptr, table_ptr, units_ptr, size,
    HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_UNITS: tl.constexpr,
):  # fmt: skip
    """(ids of a block's lanes, their units, which of them may be masked)."""
    ids = tl.load(ids_ptr + start + lane, mask=ok, other=0).to(tl.int64)
    unit = ids
    if HAS_UNITS:
        unit = tl.load(units_ptr + start + lane, mask=ok, other=-1).to(tl.int64)
    eligible = eligible_at(
        lane, own, ids, unit, real_ptr + start, special_ptr + start, table_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    return ids, unit, eligible


@triton.jit
def quads_of(first, start, BLOCK: tl.constexpr):
    """The quads of positions of a block. Negative before the first real token: words unused."""
    return ((start - first) >> 2) + tl.arange(0, BLOCK // 4)


@triton.jit
def rates_at(rates_ptr, offs, ok):
    """In float64, as the contract says; a rate of NaN is none."""
    p = tl.load(rates_ptr + offs, mask=ok, other=0).to(tl.float64)
    return tl.where(p > 0, tl.where(p < 1, p, 1), 0)


@triton.jit
def threshold_of(p):
    return (p * 4294967296.0).to(tl.int64)
