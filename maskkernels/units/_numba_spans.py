"""Numbering spans on the CPU: runs of units, cut by lengths that are drawn for each sample."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maskkernels.backend import numbers_on
from maskkernels.rng._numba import counter_word, fill_words
from maskkernels.rng.streams import SPAN
from maskkernels.runtime.jit import inlined, kernel, lowest_bit
from maskkernels.runtime.threads import over_rows
from maskkernels.tokens._numba import flat, row_bounds
from maskkernels.units.lengths import misnumbered

_SPAN = np.uint64(SPAN)


def new_like(like: Tensor, dtype: type) -> Tensor:
    """NumPy allocates faster than torch, and large arrays in huge pages."""
    return torch.from_numpy(np.empty(tuple(like.shape), dtype))


@inlined
def longest_row(bounds, first_row, last_row):
    longest = np.int64(0)
    for b in range(first_row, last_row):
        longest = max(longest, bounds[b + 1] - bounds[b])
    return longest


@inlined
def _lengths(words, thresholds, lengths):
    """lengths[i] = 1 + how many thresholds are not above words[i]; loops that vectorise."""
    lengths[: words.size] = 1
    for n in range(thresholds.size):
        if thresholds[n] < 1 << 32:
            limit = np.uint32(thresholds[n])
            for i in range(words.size):
                lengths[i] += np.uint32(words[i] >= limit)


@inlined
def _runs(row, inside, edges):
    """Where the runs of tokens with a unit begin and end by turns; how many edges there are.

    ``inside`` is room for a byte a token and eight more, ``edges`` for one more than there are
    tokens.
    """
    for t in range(row.size):
        inside[t] = row[t] >= 0
    inside[row.size : row.size + 8] = 0
    eights, n, before = inside.view(np.uint64), 0, np.uint64(0)
    for g in range((row.size >> 3) + 1):
        here = eights[g]
        turns = here ^ (here << np.uint64(8) | before)
        before = here >> np.uint64(56)
        while turns:
            edges[n] = 8 * g + (lowest_bit(turns) >> 3)
            n += 1
            turns &= turns - np.uint64(1)
    return n


@kernel
def _number_spans(units, bounds, whole, cut, sample_ids, seed, c3, spans, first_row, last_row):
    """(the first row with units that do not fit or -1, the highest of its units or -1).

    A row's units are copied before they are looked at: another thread may write to the caller's.
    """
    longest = longest_row(bounds, first_row, last_row)
    copied = np.empty(longest, np.int64)
    words = np.empty(longest + 4, np.uint32)
    lengths = np.empty(longest, np.uint32)
    cut_length = np.empty(1, np.uint32)
    inside = np.empty((longest + 15) & ~7, np.uint8)
    edges = np.empty(longest + 1, np.int64)
    span_after = np.full(longest + 1, -1, np.int64)  # that of no unit, -1, then each unit's
    span_of = span_after[1:]
    for b in range(first_row, last_row):
        given, out = units[bounds[b] : bounds[b + 1]], spans[bounds[b] : bounds[b + 1]]
        row = copied[: given.size]
        highest = np.int64(-1)
        for t in range(row.size):
            unit = max(given[t], np.int64(-1))
            row[t] = unit
            highest = max(highest, unit)
        if highest >= row.size:  # before 1 is added: that may wrap
            return b, highest
        bad = np.int64(0)
        here, ago = row[1:], row[:-1]
        for t in range(here.size):  # a step is 0 or 1, unless one of the two has no unit
            bad |= (here[t] - ago[t]) & ~np.int64(1) & ~((here[t] | ago[t]) >> np.int64(63))
        count = highest + 1
        fill_words(words[: (count + 3) & ~3], 0, sample_ids[b], c3, seed)
        _lengths(words[:count], whole, lengths)
        span_of[:count] = 0  # first how many spans begin at each
        before = np.int64(-1)
        for e in range(0, _runs(row, inside, edges), 2):
            unit, last = row[edges[e]], row[edges[e + 1] - 1]
            bad |= np.int64(unit <= before)
            before = last
            _lengths(words[unit : unit + 1], cut, cut_length)
            span_of[unit] += 1
            unit += np.int64(cut_length[0])
            while unit <= last:
                span_of[unit] += 1
                unit += np.int64(lengths[unit])
        if bad:
            return b, np.int64(-1)
        number = np.int64(-1)
        for u in range(count):
            number += span_of[u]
            span_of[u] = number
        for t in range(row.size):
            out[t] = span_after[np.uint64(row[t] + 1)]
    return np.int64(-1), np.int64(0)


def span_units(
    units: Tensor,
    whole: Sequence[int],
    cut: Sequence[int],
    sample_ids: Tensor,
    cu_seqlens: Tensor | None,
    seed: int,
    epoch: int,
) -> Tensor:
    spans = new_like(units, np.int64)
    bounds = row_bounds(units, cu_seqlens)
    arrays = (
        flat(units, torch.int64),
        bounds,
        numbers_on(units.device, tuple(whole)).numpy(),
        numbers_on(units.device, tuple(cut)).numpy(),
        flat(sample_ids, torch.int64).view(np.uint64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(epoch) | _SPAN,
        spans.numpy().reshape(-1),
    )
    for b, highest in over_rows(lambda begin, end: _number_spans(*arrays, begin, end), bounds):
        if b >= 0:
            raise misnumbered(b, highest, int(bounds[b + 1] - bounds[b]))
    return spans
