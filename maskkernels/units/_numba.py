"""Numbering words and spans on the CPU: one pass over the tokens, one write."""

import numpy as np
import torch
from torch import Tensor

from maskkernels.jit import inlined, kernel
from maskkernels.rng._numba import counter_word, fill_words, flat, flat_masks, row_bounds
from maskkernels.threads import over_rows
from maskkernels.units.flags import ENDS, STARTS
from maskkernels.units.lengths import too_high
from maskkernels.units.weights import FINEST, not_a_weight, unreachable

BLOCK = 1024  # tokens looked at together
_SPAN = np.uint64(9)  # stream of the random contract
_INFINITE = np.int64(0x7FF << 52)  # the bits of a double


@inlined
def _look_up(ids, table, found):
    """found[i] = table[ids[i]], 0 outside it."""
    for i in range(ids.size):
        token = np.uint64(ids[i])  # a negative id is a huge one
        inside = token < np.uint64(table.size)
        entry = table[token if inside else np.uint64(0)]
        found[i] = entry if inside else np.uint8(0)


@inlined
def _may_mask(ids, real, special, maskable, may):
    """may[i] = 1 where token i of a block may be masked; a loop for each reason, to vectorise."""
    if special.size:
        for i in range(ids.size):
            may[i] = special[i] == 0
    elif maskable.size:
        _look_up(ids, maskable, may)
    else:
        may[: ids.size] = 1
    if real.size:
        for i in range(ids.size):
            may[i] &= real[i] != 0


@inlined
def _part(array, begin, end):
    """A block of an array that may be absent."""
    return array[begin:end] if array.size else array


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
    may = np.zeros(BLOCK + 1, np.uint8)  # the token before a block stands at 0
    flags = np.zeros(BLOCK + 1, np.uint8)
    starts = np.empty(BLOCK, np.uint8)
    for b in range(first_row, last_row):
        number = np.int64(-1)
        may[0], flags[0] = 0, 0
        for begin in range(bounds[b], bounds[b + 1], BLOCK):
            end = min(begin + BLOCK, bounds[b + 1])
            size, block = end - begin, ids[begin:end]
            _may_mask(block, _part(real, begin, end), _part(special, begin, end), maskable, may[1:])
            if table.size:
                _look_up(block, table, flags[1:])
                for i in range(size):
                    starts[i] = ((flags[i + 1] & STARTS) | (flags[i] & ENDS)) != 0
            elif offsets.size:
                for i in range(size):  # the first of a row has a number of its own anyway
                    t = begin + i
                    starts[i] = offsets[2 * t] != offsets[max(2 * t - 1, 0)]
            else:
                for i in range(size):
                    word = word_ids[begin + i]
                    may[i + 1] &= (word >= 0) | (groups.size > 0 and groups[begin + i] >= 0)
                    starts[i] = word != word_ids[max(begin + i - 1, 0)]
            if groups.size:
                for i in range(size):
                    group = groups[begin + i]
                    new = group != groups[max(begin + i - 1, 0)]
                    starts[i] = new | (starts[i] & (group < 0))
            out = units[begin:end]
            for i in range(size):  # three loops: the one that goes step by step has to be short
                starts[i] = may[i + 1] & (starts[i] | (may[i] ^ 1))
            for i in range(size):
                number += np.int64(starts[i])
                out[i] = number
            for i in range(size):
                out[i] = out[i] if may[i + 1] else -1
            may[0], flags[0] = may[size], flags[size]


def _new(like: Tensor, dtype: type) -> Tensor:
    """NumPy allocates faster than torch, and large arrays in huge pages."""
    return torch.from_numpy(np.empty(tuple(like.shape), dtype))


def _number(name: str, which: Tensor, input_ids: Tensor, cu_seqlens: Tensor | None, *beside):
    attention_mask, special_tokens_mask, maskable, groups = beside
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


def word_units(input_ids: Tensor, table: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("table", table, input_ids, *beside)


def units_from_offsets(input_ids: Tensor, offsets: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("offsets", offsets, input_ids, *beside)


def units_from_word_ids(input_ids: Tensor, word_ids: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("word_ids", word_ids, input_ids, *beside)


@inlined
def _lengths(words, thresholds, lengths):
    """lengths[i] = 1 + how many thresholds are not above words[i]; loops that vectorise."""
    lengths[: words.size] = 1
    for n in range(thresholds.size):
        if thresholds[n] < 1 << 32:
            limit = np.uint32(thresholds[n])
            for i in range(words.size):
                lengths[i] += np.uint32(words[i] >= limit)


@kernel
def _number_spans(units, bounds, whole, cut, sample_ids, seed, c3, spans, first_row, last_row):
    """(a unit's number past the length of its row or -1, that length)."""
    longest = _longest(bounds, first_row, last_row)
    words = np.empty(longest + 4, np.uint32)
    lengths = np.empty(longest, np.uint32)
    cut_length = np.empty(1, np.uint32)
    span_of = np.empty(longest, np.int64)  # each unit's
    for b in range(first_row, last_row):
        row, out = units[bounds[b] : bounds[b + 1]], spans[bounds[b] : bounds[b + 1]]
        count = np.int64(0)
        for t in range(row.size):
            count = max(count, row[t] + 1)
        if count > row.size:
            return count - 1, row.size
        fill_words(words[: (count + 3) & ~3], 0, sample_ids[b], c3, seed)
        _lengths(words[:count], whole, lengths)
        span_of[:count] = -1
        number, before, begin = np.int64(-1), np.int64(-1), np.int64(0)
        for t in range(row.size + 1):
            unit = row[t] if t < row.size else np.int64(-1)
            if unit >= 0 and before < 0:
                begin = unit
            if unit < 0 and before >= 0:  # the end of a run of units
                _lengths(words[begin : begin + 1], cut, cut_length)
                number += 1
                left = np.int64(cut_length[0])
                span_of[begin] = number
                for u in range(begin + 1, before + 1):
                    left -= 1
                    new = left == 0
                    number += np.int64(new)
                    left = np.int64(lengths[u]) if new else left
                    span_of[u] = number
            before = unit
        for t in range(row.size):
            span = span_of[max(row[t], 0)]
            out[t] = span if row[t] >= 0 else np.int64(-1)
    return np.int64(-1), np.int64(0)


@inlined
def _longest(bounds, first_row, last_row):
    longest = np.int64(0)
    for b in range(first_row, last_row):
        longest = max(longest, bounds[b + 1] - bounds[b])
    return longest


def span_units(
    units: Tensor,
    whole: Tensor,
    cut: Tensor,
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
        whole.numpy(),
        cut.numpy(),
        flat(sample_ids, torch.int64).view(np.uint64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(epoch) | _SPAN,
        spans.numpy().reshape(-1),
    )
    for highest, length in over_rows(lambda begin, end: _number_spans(*arrays, begin, end), bounds):
        if highest >= 0:
            raise too_high(highest, length)
    return spans


@kernel
def _share_out(weights, units, bounds, rate, rates, first_row, last_row):
    """Rates of rows; (a row whose rate cannot be reached or -1, its weighted, its maskable).

    Its weighted tokens are -1 where one of its weights is none.

    No float64 is summed, and doubles that are not negative are ordered as their bits are: so the
    loops over a row vectorise, and their order does not matter.
    """
    longest = _longest(bounds, first_row, last_row)
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
        if weighted < 0:
            raise not_a_weight()
        if sample >= 0:
            raise unreachable(sample, rate, weighted, maskable)
    return rates
