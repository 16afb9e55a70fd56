"""Numbering words and spans on the CPU: one pass over the tokens, one write."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maskkernels.backend import numbers_on
from maskkernels.rng._numba import counter_word, fill_words
from maskkernels.rng.streams import SPAN
from maskkernels.runtime.jit import inlined, kernel, lowest_bit
from maskkernels.runtime.threads import over_rows
from maskkernels.tokens._numba import flat, flat_masks, longest_row, row_bounds
from maskkernels.units.flags import ENDS, STARTS
from maskkernels.units.lengths import misnumbered
from maskkernels.units.weights import FINEST, not_a_weight, unreachable

BLOCK = 1024  # tokens looked at together
_SPAN = np.uint64(SPAN)
MAY = 4  # in addition to the flags of an id: it may be masked
_EIGHT_ONES = np.uint64(0x0101010101010101)
_INFINITE = np.int64(0x7FF << 52)  # the bits of a double


@inlined
def _known(table, maskable):
    """The flags of each id, and MAY where it may be masked; the last entry is that of other ids.

    One table in place of two, because looking up is most of the work.
    """
    known = np.empty(max(table.size, maskable.size) + 1, np.uint8)
    known[:] = 0 if maskable.size else MAY
    for i in range(table.size):
        known[i] |= table[i] & (STARTS | ENDS)
    for i in range(maskable.size):
        known[i] |= maskable[i] * MAY
    return known


@inlined
def _look_up(ids, known, found):
    """found[i] = known[ids[i]], the last entry for an id outside it."""
    outside = np.uint64(known.size - 1)
    for i in range(ids.size):
        found[i] = known[min(np.uint64(ids[i]), outside)]  # a negative id is a huge one


@inlined
def _changed(values, befores, begin, end, changed):
    """changed[i] = 1 where values[begin + i] is not the one of ``befores`` in front of it.

    The first token of a row begins a unit whatever precedes it in memory.
    """
    changed[0] = begin == 0 or values[begin] != befores[begin - 1]
    here, before, out = values[begin + 1 : end], befores[begin : end - 1], changed[1:]
    for i in range(here.size):
        out[i] = here[i] != before[i]


@inlined
def _apart(offsets, begin, end, apart):
    """apart[i] = 1 where token begin + i begins behind the one before it, or in front of it.

    ``offsets`` holds beginnings and ends by turns.
    """
    t = 2 * begin
    apart[0] = begin == 0 or offsets[t] > offsets[t - 1] or offsets[t] < offsets[t - 2]
    pairs, out = offsets[t : 2 * end], apart[1:]
    for i in range(end - begin - 1):
        at = np.uint64(i) << np.uint64(1)
        start, stop = pairs[at], pairs[at + np.uint64(1)]
        following = pairs[at + np.uint64(2)]
        out[i] = (following > stop) | (following < start)


@inlined
def _count(starts, may, number, out):
    """out[i] = number + how many of starts[: i + 1] are 1, or -1 where may[i] is 0; the last count.

    Eight bytes at a time: times 0x0101..., each byte of a word becomes the sum of those up to it.
    ``starts`` is written over, up to a multiple of eight.
    """
    eights = starts.view(np.uint64)
    for begin in range(0, out.size, 128):  # no sum passes what a byte holds
        end = min(begin + 128, out.size)
        before = np.uint64(0)
        for g in range(begin >> 3, (end + 7) >> 3):
            sums = eights[g] * _EIGHT_ONES
            eights[g] = sums + before * _EIGHT_ONES
            before += sums >> np.uint64(56)
        here, ok, to = starts[begin:end], may[begin:end], out[begin:end]
        for i in range(to.size):
            to[i] = number + np.int64(here[i]) if ok[i] else np.int64(-1)
        number += np.int64(before)
    return number


@kernel
def _number_rows(
    ids,
    bounds,
    real,
    special,
    maskable,
    table,
    offsets,
    word_ids,
    groups,
    units,
    first_row,
    last_row,
):
    """Of ``table`` [V], ``offsets`` [2 N] and ``word_ids`` [N] two are empty."""
    known = _known(table, maskable)
    may = np.zeros(BLOCK + 1, np.uint8)  # entry 0 is the token before the block
    flags = np.full(BLOCK + 1, MAY, np.uint8)
    starts = np.empty(BLOCK, np.uint8)
    changed = np.empty(BLOCK, np.uint8)
    for b in range(first_row, last_row):
        number = np.int64(-1)
        may[0] = flags[0] = 0
        for begin in range(bounds[b], bounds[b + 1], BLOCK):
            end = min(begin + BLOCK, bounds[b + 1])
            size = end - begin
            # A loop for each question, to vectorise; slices, whose indices are not looked at.
            before, here, may_before, may_here = flags[:size], flags[1:], may[:size], may[1:]
            if known.size > 1:
                _look_up(ids[begin:end], known, here)
            if special.size:
                part = special[begin:end]
                for i in range(size):
                    may_here[i] = part[i] == 0
            else:
                for i in range(size):
                    may_here[i] = here[i] >> 2
            if real.size:
                part = real[begin:end]
                for i in range(size):
                    may_here[i] &= part[i] != 0
            if offsets.size:
                _apart(offsets, begin, end, starts)
            elif not word_ids.size:
                for i in range(size):
                    starts[i] = (here[i] & STARTS) | (before[i] >> 1 & 1)
            else:
                _changed(word_ids, word_ids, begin, end, starts)
                part, grouped = word_ids[begin:end], groups[begin:end]
                if groups.size:
                    for i in range(size):
                        may_here[i] &= (part[i] >= 0) | (grouped[i] >= 0)
                else:
                    for i in range(size):
                        may_here[i] &= part[i] >= 0
            if groups.size:
                _changed(groups, groups, begin, end, changed)
                grouped = groups[begin:end]
                for i in range(size):
                    starts[i] = changed[i] | (starts[i] & (grouped[i] < 0))
            for i in range(size):
                starts[i] = may_here[i] & (starts[i] | (may_before[i] ^ 1))
            starts[size : (size + 7) & ~7] = 0
            number = _count(starts, may_here, number, units[begin:end])
            may[0], flags[0] = may[size], flags[size]


def _new(like: Tensor, dtype: type) -> Tensor:
    """NumPy allocates faster than torch, and large arrays in huge pages."""
    return torch.from_numpy(np.empty(tuple(like.shape), dtype))


def _number(name: str, which: Tensor, input_ids: Tensor, cu_seqlens: Tensor | None, *limits):
    attention_mask, special_tokens_mask, maskable, groups = limits
    units = _new(input_ids, np.int64)
    bounds = row_bounds(input_ids, cu_seqlens)
    arrays = (
        flat(input_ids, input_ids.dtype),
        bounds,
        *flat_masks(attention_mask, special_tokens_mask),
        flat(maskable, torch.bool).view(np.uint8),
        flat(which if name == "table" else None, torch.uint8),
        flat(which if name == "offsets" else None, torch.int64),
        flat(which if name == "word_ids" else None, torch.int64),
        flat(groups, torch.int64),
        units.numpy().reshape(-1),
    )
    over_rows(lambda begin, end: _number_rows(*arrays, begin, end), bounds)
    return units


def word_units(input_ids: Tensor, table: Tensor, *limits: Tensor | None) -> Tensor:
    return _number("table", table, input_ids, *limits)


def units_from_offsets(input_ids: Tensor, offsets: Tensor, *limits: Tensor | None) -> Tensor:
    return _number("offsets", offsets, input_ids, *limits)


def units_from_word_ids(input_ids: Tensor, word_ids: Tensor, *limits: Tensor | None) -> Tensor:
    return _number("word_ids", word_ids, input_ids, *limits)


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
    spans = _new(units, np.int64)
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


@kernel
def _share_out(weights, units, bounds, rate, rates, first_row, last_row):
    """Rates of rows; (a row whose rate cannot be reached or -1, its weighted, its maskable).

    Its weighted tokens are -1 where one of its weights is none.

    No float64 is summed, and doubles that are not negative are ordered as their bits are: so the
    loops over a row vectorise, and their order does not matter.
    """
    longest = longest_row(bounds, first_row, last_row)
    of_unit = np.empty(longest, np.float64)
    bits = of_unit.view(np.int64)
    parts = np.empty(longest, np.int32)
    for b in range(first_row, last_row):
        row, out = units[bounds[b] : bounds[b + 1]], rates[bounds[b] : bounds[b + 1]]
        given = weights[bounds[b] : bounds[b + 1]]
        before, weight, maskable = np.int64(-1), 0.0, np.int64(0)
        for t in range(row.size):
            unit = row[t]
            own = given[t] + 0.0 if unit >= 0 else 0.0  # -0.0 becomes 0.0
            weight = own if unit != before else weight
            of_unit[t] = weight
            before = unit
        largest, least = np.int64(0), np.int64(0)
        for t in range(row.size):
            largest, least = max(largest, bits[t]), min(least, bits[t])
            maskable += np.int64(row[t] >= 0)
        if largest >= _INFINITE or least < 0:
            return b, np.int64(-1), maskable
        scale = np.int64(largest).view(np.float64) if largest > 0 else 1.0
        weighted, total = np.int64(0), np.int64(0)
        for t in range(row.size):
            part = np.int32(max(np.floor(of_unit[t] / scale * FINEST), 1.0))
            part = part if of_unit[t] > 0.0 else np.int32(0)
            parts[t] = part
            weighted += np.int64(part > 0)
            total += np.int64(part)
        asked = rate * maskable
        if asked > weighted:
            return b, weighted, maskable
        certain, lost = np.int64(0), np.int64(1)
        while lost > 0:  # a part that is -1 is masked for certain
            share = max(asked - certain, 0.0) / max(total, np.int64(1))
            lost = np.int64(0)
            for t in range(row.size):
                part = parts[t]
                p = np.float64(part) * share
                over = p >= 1.0
                out[t] = 1.0 if part < 0 else p
                lost += np.int64(part) if over else np.int64(0)
                certain += np.int64(over)
                parts[t] = np.int32(-1) if over else part
            total -= lost
    return np.int64(-1), np.int64(0), np.int64(0)


def rates_from_weights(
    weights: Tensor, units: Tensor, rate: float, cu_seqlens: Tensor | None
) -> Tensor:
    rates = _new(units, np.float64)
    bounds = row_bounds(units, cu_seqlens)
    arrays = (
        flat(weights, torch.float64),
        flat(units, torch.int64),
        bounds,
        rate,
        rates.numpy().reshape(-1),
    )
    for sample, weighted, maskable in over_rows(
        lambda begin, end: _share_out(*arrays, begin, end), bounds
    ):
        if sample < 0:
            continue
        at, least = sample, weighted
        while at >= 0 and least >= 0:  # a weight that is none, in any row, comes first
            at, least, _ = _share_out(*arrays, at + 1, bounds.size - 1)
        if least < 0:
            raise not_a_weight()
        raise unreachable(sample, rate, weighted, maskable)
    return rates
