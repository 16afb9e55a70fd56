"""Masking of whole units on the CPU: the word of a unit decides for all of its tokens."""

import numpy as np

from maskkernels.mask._numba_rows import (
    BLOCK,
    above_rate,
    keep_eligible,
    pick_by_word,
    selected_below,
    take_row,
    write_selected,
)
from maskkernels.rng._numba import fill_words, gather_words
from maskkernels.rng.streams import UNIT
from maskkernels.runtime.jit import inlined, kernel
from maskkernels.tokens._numba import longest_row

_UNIT = np.uint64(UNIT)


@inlined
def unit_slots(units, slots, table, numbers):
    """Number the distinct units of a row from 0, as they appear; how many there are.

    ``table`` has a power of two of entries, at least twice the row's length: a hash table with
    linear probing, of slots. ``numbers`` takes the unit of each slot.
    """
    table[:] = -1
    wrap = np.uint64(table.size - 1)
    n = 0
    for t in range(units.size):
        u = units[t]
        slots[t] = -1
        if u < 0:
            continue
        place = (np.uint64(u) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(29)) & wrap
        while table[place] >= 0 and numbers[table[place]] != u:
            place = (place + np.uint64(1)) & wrap
        if table[place] < 0:
            table[place] = n
            numbers[n] = u
            n += 1
        slots[t] = table[place]
    return n


@inlined
def power_of_two(n):
    size = 1
    while size < n:
        size *= 2
    return size


@inlined
def words_of_units(units, sample, law, slots, table, numbers, words):
    """(slot of each token's unit or -1, how many slots); words[slot] is the unit's of stream 2.

    The slot is the unit itself where units are numbered densely, as they nearly always are; copied,
    because another thread may write to the caller's units.
    """
    highest = np.int64(-1)
    for t in range(units.size):
        slots[t] = max(units[t], np.int64(-1))
        highest = max(highest, slots[t])
    if highest < words.size - 4:
        n = highest + 1
        fill_words(words[: (n + 3) & ~3], 0, sample, law.c3 | _UNIT, law.seed)
        return slots[: units.size], n
    n = unit_slots(units, slots, table[: power_of_two(2 * units.size)], numbers)
    gather_words(numbers, n, sample, law.c3 | _UNIT, law.seed, words)
    return slots[: units.size], n


@kernel
def mask_units(tokens, law, output, first_row, last_row):
    """Whole units of tokens. Returns as ``_mask_tokens``."""
    longest = longest_row(tokens.bounds, first_row, last_row)
    unit_words = np.empty(longest + 4, np.uint32)
    token_words = np.empty(BLOCK, np.uint32)
    slots = np.empty(longest, np.int64)
    table = np.empty(power_of_two(2 * longest), np.int64)
    numbers = np.empty(longest, np.int64)
    words = np.empty(BLOCK, np.uint32)
    above = np.empty(BLOCK, np.uint32)
    at = np.empty(BLOCK, np.int64)
    index = np.empty(BLOCK, np.int64)
    action = np.empty(BLOCK, np.uint8)
    count = 0
    for b in range(first_row, last_row):
        bad, row, end, first, sample = take_row(tokens, output, b)
        if bad >= 0:
            return count, bad
        slot, _ = words_of_units(
            tokens.units[row:end], sample, law, slots, table, numbers, unit_words
        )
        for begin in range(first, end, BLOCK):
            size = min(BLOCK, end - begin)
            here = slot[begin - row : begin - row + size]
            for i in range(size):
                token_words[i] = unit_words[max(here[i], 0)]
            if tokens.rates.size:
                above_rate(token_words, tokens.rates[begin : begin + size], above)
                n = selected_below(above, begin, size, 1, at)
            else:
                n = selected_below(token_words, begin, size, law.select, at)
            n = keep_eligible(tokens, output, at, n)
            pick_by_word(tokens, law, at, n, first, sample, index, words, action)
            count = write_selected(
                tokens, law, output, at, action, n, first, sample, count, index, words
            )
    return count, -1
