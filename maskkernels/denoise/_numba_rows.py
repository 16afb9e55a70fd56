"""What the denoising kernels on the CPU share: their arguments, choices and compositions."""

from typing import Any, NamedTuple

import numpy as np

from maskkernels.rng._numba import fill_words, hash_row, word
from maskkernels.runtime.jit import copier, inlined, lowest_bit

_LOW, _U32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_ONE = np.uint64(1)
_HALF = np.int64(1 << 31)
_NO_MASK = np.empty(0, np.bool_)
copy_span, copy_gap = copier(8), copier(32)


class RowArrays(NamedTuple):
    """The rows of a batch as arrays, and where their words come from."""

    ids: Any  # int32 or int64 [N]
    bounds: Any  # int64 [B + 1]
    sample_ids: Any  # uint64 [B]; an empty array: the hash of each row
    seed: Any  # uint64
    c3: Any  # uint64, stream 0
    edges: Any  # int64 [E], sorted, ids that stay at the ends of a row


PLAN = np.dtype(  # what is known of each row before it is written
    [
        ("sample", np.uint64),
        ("begin", np.int64),  # the tokens ids[begin:end] may be corrupted
        ("end", np.int64),
        ("mode", np.int64),  # the mode token, or -1
        ("noise", np.int64),  # tokens that are taken out
        ("spans", np.int64),
    ]
)


class Marks(NamedTuple):
    """What spans become."""

    table: Any  # int64 [D, 5]
    sentinels: Any  # int64 [S]
    final: int  # 1 with a sentinel after the last span
    eos: int  # or -1


class Infill(NamedTuple):
    """The numbers of text infilling."""

    mask: int
    ratio: int  # T(ratio)
    table: Any  # int64 [L], of lengths
    ends: Any  # bool [E], whether each id ends a sentence, those above do not; empty: no shuffling


@inlined
def contains(ids, token):
    """``token`` is one of ``ids``, which are sorted."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low < ids.size and ids[low] == token


@inlined
def inner_of(rows, b):
    """(begin, end) of the row without the tokens that stay at its ends."""
    begin, end = rows.bounds[b], rows.bounds[b + 1]
    while begin < end and contains(rows.edges, rows.ids[begin]):
        begin += 1
    while end > begin and contains(rows.edges, rows.ids[end - 1]):
        end -= 1
    return begin, end


@inlined
def sample_of(rows, b):
    if rows.sample_ids.size:
        return rows.sample_ids[b]
    return hash_row(rows.ids[rows.bounds[b] : rows.bounds[b + 1]], _NO_MASK, 0)


@inlined
def word_of(rows, sample, stream, index):
    c1, c2, k0, k1 = sample & _LOW, sample >> _U32, rows.seed & _LOW, rows.seed >> _U32
    return word(np.uint64(index), c1, c2, rows.c3 | stream, k0, k1)


@inlined
def fill_first(seed, c3, sample, count, words):
    """The first ``count`` words of a stream, which is part of ``c3``."""
    fill_words(words[: (count + 3) & ~3], 0, sample, c3, seed)


@inlined
def number_below(word, bound):
    """A number in [0, bound) from a word."""
    return np.int64((np.uint64(word) * np.uint64(bound)) >> _U32)


@inlined
def choose(bits, size, count, words):
    """Set ``count`` of the first ``size`` bits and clear the others, as ``reference._chosen``."""
    bits[: (size + 63) >> 6] = 0
    for i in range(count):
        highest = size - count + i
        n = number_below(words[i], highest + 1)
        taken = np.int64((bits[n >> 6] >> np.uint64(n & 63)) & _ONE)
        n += taken * (highest - n)  # a branch would be mispredicted
        bits[n >> 6] |= _ONE << np.uint64(n & 63)


@inlined
def part_ends(seed, c3, sample, total, parts, bits, words, ends):
    """Where each of ``parts`` parts of a random composition of ``total`` ends."""
    fill_first(seed, c3, sample, parts - 1, words)
    choose(bits, total - 1, parts - 1, words)
    n = 0
    for i in range((total + 62) >> 6):
        left = bits[i]
        while left:
            ends[n] = 64 * i + lowest_bit(left) + 1
            n += 1
            left &= left - _ONE
    ends[n] = total


@inlined
def span_counts(size, density, mean, prefix):
    """As ``job.span_counts``."""
    if size < 2:
        return 0, 0
    noise = min(max((size * density + _HALF) >> 32, 1), size - 1)
    if prefix:
        return noise, 1
    spans = ((noise << 16) + mean // 2) // mean
    return noise, min(max(spans, 1), noise, size - noise)
