"""An exact budget on the CPU: the k tokens or units with the smallest keys of each sample."""

import numpy as np

from maskkernels.mask._numba_rows import (
    keep_eligible,
    pick_by_word,
    take_row,
    threshold_of,
    write_selected,
)
from maskkernels.mask._numba_units import power_of_two, words_of_units
from maskkernels.mask.actions import MASK
from maskkernels.rng._numba import fill_words
from maskkernels.runtime.jit import inlined, kernel
from maskkernels.tokens._numba import longest_row

_HALF = np.int64(1 << 31)
_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)  # above every key
_DISTINCT = np.uint64((1 << 33) - 1)  # keys below it have room for an index


@inlined
def _key(word, position):
    return (np.uint64(word) << np.uint64(32)) | np.uint64(position)


@inlined
def _weigh(keys, n, rates):
    """Divide the words of n keys by the thresholds of their rates, and drop their positions.

    Returns (the sum of the thresholds, how many are not 0). ``rates`` begins at position 0. They
    are held to [0, 1], a NaN to 0, as in the reference: no sum asks for more keys than there are.
    """
    total, eligible = np.int64(0), 0
    for i in range(n):
        rate = rates[keys[i] & np.uint64(0xFFFFFFFF)]
        rate = rate if rate > 0.0 else 0.0
        below = threshold_of(rate if rate < 1.0 else 1.0)
        total += below
        eligible += below > 0
        quotient = (keys[i] & np.uint64(0xFFFFFFFF00000000)) // np.uint64(max(below, 1))
        keys[i] = quotient if below > 0 else _NEVER
    return total, eligible


@inlined
def _break_ties(keys, n, k, some):
    """Make the k smallest of n keys distinct, equal ones in the order of their indices.

    The k-th smallest is near 2^32, so that there is room for the index below it; what is far above
    becomes the largest key. Where chance put it there too, which needs a small k, ranks are found
    one by one.
    """
    low = 0
    for i in range(n):
        low += keys[i] < _DISTINCT
    if low >= k and n <= 1 << 31:
        for i in range(n):
            key = (keys[i] << np.uint64(31)) | np.uint64(i)
            keys[i] = key if keys[i] < _DISTINCT else _NEVER
        return
    for i in range(n):
        some[i] = _NEVER
    for rank in range(k):
        least = 0
        for i in range(n):
            least = i if keys[i] < keys[least] else least
        some[least] = rank
        keys[least] = _NEVER
    for i in range(n):
        keys[i] = some[i]


@inlined
def _count_keys(keys, n, bins):
    """bins[b] = how many of n keys have b as their highest byte."""
    bins[:] = 0
    for i in range(n):
        bins[keys[i] >> np.uint64(56)] += 1


@inlined
def _limit(keys, n, k, bins, some):
    """One more than the k-th smallest of n keys, which ``bins`` counts: k of them are below it."""
    if k == 0:
        return np.uint64(0)
    before, b = 0, 0
    while before + bins[b] < k:
        before += bins[b]
        b += 1
    m = 0
    for i in range(n):
        some[m] = keys[i]
        m += (keys[i] >> np.uint64(56)) == np.uint64(b)
    some[:m].sort()
    return some[k - before - 1] + np.uint64(1)


@kernel
def mask_budget(tokens, law, output, first_row, last_row):
    """Exactly k tokens or units: those with the k smallest keys. Returns as ``_mask_tokens``.

    A key is (word, position), or with rates of their own the word over the threshold.
    """
    longest = longest_row(tokens.bounds, first_row, last_row)
    by_unit = tokens.units.size > 0
    words = np.empty(longest + 4, np.uint32)
    slots = np.empty(longest if by_unit else 0, np.int64)
    table = np.empty(power_of_two(2 * longest) if by_unit else 0, np.int64)
    numbers = np.empty(longest if by_unit else 0, np.int64)
    entry = np.empty(longest + 1 if by_unit else 0, np.int64)  # of each slot: where its key is
    keys = np.empty(longest + 1, np.uint64)
    some = np.empty(longest + 1, np.uint64)
    bins = np.empty(256, np.int64)
    at = np.empty(longest + 1, np.int64)
    index = np.empty(longest, np.int64)
    action = np.empty(longest, np.uint8)
    count = 0
    for b in range(first_row, last_row):
        bad, row, end, first, sample = take_row(tokens, output, b)
        if bad >= 0:
            return count, bad
        for t in range(first, end):
            at[t - first] = t
        n = keep_eligible(tokens, output, at, end - first)
        entries = n  # of what the k are chosen from
        slot = slots
        if by_unit:
            slot, found = words_of_units(
                tokens.units[row:end], sample, law, slots, table, numbers, words
            )
            entry[: found + 1] = -1
            entries = 0
            for i in range(n):
                s = max(slot[at[i] - row], 0)
                if entry[s] < 0:
                    entry[s] = entries
                    keys[entries] = _key(words[s], at[i] - first)
                    entries += 1
        else:
            fill_words(words[: (end - first + 3) & ~3], 0, sample, law.c3, law.seed)
            for i in range(n):
                keys[i] = _key(words[at[i] - first], at[i] - first)
        total, eligible = np.int64(entries * law.select), entries
        if tokens.rates.size:
            total, eligible = _weigh(keys, entries, tokens.rates[first:end])
        k = (total + _HALF) >> 32
        if law.at_least_one and eligible > 0 and k == 0:
            k = 1
        if tokens.rates.size:
            _break_ties(keys, entries, k, some)
        _count_keys(keys, entries, bins)
        chosen = _limit(keys, entries, k, bins, some)
        ranked = not by_unit or law.per_unit
        mask_below = random_below = np.uint64(0)
        if ranked:
            k_mask = min((k * threshold_of(law.mask_share) + _HALF) >> 32, k)
            k_both = min((k * threshold_of(law.both) + _HALF) >> 32, k)
            mask_below = _limit(keys, entries, k_mask, bins, some)
            random_below = _limit(keys, entries, k_both, bins, some)
        selected = 0
        for i in range(n):
            t = at[i]
            key = keys[entry[max(slot[t - row], 0)] if by_unit else i]
            at[selected] = t
            action[selected] = MASK + (key >= mask_below) + (key >= random_below)
            selected += key < chosen
        if not ranked:
            pick_by_word(tokens, law, at, selected, first, sample, index, words, action)
        count = write_selected(
            tokens, law, output, at, action, selected, first, sample, count, index, words
        )
    return count, -1
