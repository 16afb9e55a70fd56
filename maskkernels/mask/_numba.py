"""Masking on the CPU: copy a row, find the few selected tokens without a branch, write those.

The law of section "plain formula" in ``api.mask_tokens``, three times: for tokens on their own, for
units of tokens, and for an exact budget of either. A row's words and what is selected by them stay
in the first-level cache; tokens that are not selected cost a copy, a word and a comparison.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskkernels.mask.actions import MASK, RANDOM
from maskkernels.mask.job import MaskJob
from maskkernels.mask.policy import outside_vocabulary, thresholds
from maskkernels.rng._numba import (
    counter_word,
    fill_words,
    first_real,
    flat,
    flat_masks,
    gather_words,
    hash_row,
    row_bounds,
)
from maskkernels.rng.streams import REPLACEMENT, UNIT
from maskkernels.runtime.jit import at_most, inlined, kernel, lowest_bit
from maskkernels.runtime.threads import over_rows

BLOCK = 1024  # tokens looked at together
_HALF = np.int64(1 << 31)
_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)  # above every key
_ROOM = np.uint64((1 << 33) - 1)
_thresholds = lru_cache(maxsize=64)(thresholds)
_REPLACEMENT, _UNIT = np.uint64(REPLACEMENT), np.uint64(UNIT)


class Tokens(NamedTuple):
    """The arrays of a job, flat and contiguous; empty where they were not given."""

    ids: Any  # int32 or int64 [N]
    bounds: Any  # int64 [B + 1]
    real: Any  # [N], bool both or int64 both
    special: Any
    table: Any  # bool [V]
    units: Any  # int64 [N]
    rates: Any  # float64 [N]
    sample_ids: Any  # uint64 [B]


class Law(NamedTuple):
    """The numbers of a job."""

    seed: Any  # uint64
    c3: Any  # uint64, stream 0
    rate: float
    mask_share: float
    both: float  # mask_share + random_share
    select: int  # thresholds on the word that selects a token at ``rate``
    mask_below: int
    random_below: int
    at_least_one: bool
    per_unit: bool


class Output(NamedTuple):
    """Where results go, and what is written there."""

    ids: Any  # like Tokens.ids
    labels: Any
    positions: Any  # int64 [capacity]
    mask_token_id: int
    replacement_ids: Any  # int64 [n], or empty
    vocab_size: int
    ignore_index: int
    size: int  # ids are in [0, size)


@inlined
def _threshold(p):
    return np.int64(p * 4294967296.0)


@inlined
def _copy_row(tokens, output, begin, end):
    """Copy a row and ignore its labels; the first real id outside the vocabulary, or -1."""
    ids, out, labels = tokens.ids[begin:end], output.ids[begin:end], output.labels[begin:end]
    size, ignore_index = np.uint64(output.size), output.ignore_index
    highest = np.uint64(0)
    for t in range(ids.size):
        token = ids[t]
        highest = max(highest, np.uint64(token))  # a negative id is a huge one
        out[t] = token
        labels[t] = ignore_index
    if highest >= size:
        for t in range(begin, end):
            if (tokens.real.size == 0 or tokens.real[t]) and np.uint64(tokens.ids[t]) >= size:
                return t
    return -1


@inlined
def _sample(tokens, b):
    """(index of the row's first real token, sample id)."""
    begin, end = tokens.bounds[b], tokens.bounds[b + 1]
    real = tokens.real[begin:end] if tokens.real.size else tokens.real
    first = first_real(real)
    if tokens.sample_ids.size:
        return begin + first, tokens.sample_ids[b]
    return begin + first, hash_row(tokens.ids[begin:end], real, first)


@inlined
def _bits(words, group, size, highest):
    """Bit i: words[group + i] <= highest; for the 64 words from ``group``, none past ``size``."""
    bits = at_most(words, group, highest)
    if size - group < 64:
        bits &= (np.uint64(1) << np.uint64(size - group)) - np.uint64(1)
    return bits


@inlined
def _select(words, begin, size, select, at):
    """Put begin + i into ``at`` for each of ``size`` words below ``select``; how many there are."""
    n = 0
    if select == 0:
        return n
    highest = np.uint32(select - 1)
    for group in range(0, size, 64):
        bits = _bits(words, group, size, highest)
        while bits:
            at[n] = begin + group + lowest_bit(bits)
            n += 1
            bits &= bits - np.uint64(1)
    return n


@inlined
def _above_rate(words, rates, above):
    """above[i] = 0 where words[i] < T(rates[i]), else 1: w < floor(x) is w + 1 <= x, in lanes."""
    for i in range(rates.size):
        below = np.float64(words[i]) + 1.0 <= rates[i] * 4294967296.0
        above[i] = np.uint32(0) if below else np.uint32(1)


@inlined
def _keep_eligible(tokens, at, n):
    """Drop from at[:n] what may not be masked; how many are left."""
    ids, real, special, table, units = (
        tokens.ids, tokens.real, tokens.special, tokens.table, tokens.units,
    )  # fmt: skip
    left = 0
    for i in range(n):
        t = at[i]
        ok = True
        if real.size:
            ok = real[t] != 0
        if units.size:
            ok = ok and units[t] >= 0
        if special.size:
            ok = ok and not special[t]
        elif table.size:
            ok = ok and table[ids[t]]
        at[left] = t
        left += ok
    return left


@inlined
def _pick_by_word(tokens, law, at, n, first, sample, index, words, action):
    """Choose for each selected token by its own word of stream 0, or by its unit's."""
    if law.per_unit:
        units = tokens.units
        for i in range(n):
            index[i] = units[at[i]]
    else:
        for i in range(n):
            index[i] = at[i] - first
    gather_words(index, n, sample, law.c3, law.seed, words)
    mask_below, random_below = _threshold(law.mask_share), _threshold(law.both)
    for i in range(n):
        r = np.int64(words[i])
        action[i] = MASK + (r >= mask_below) + (r >= random_below)


@inlined
def _write(tokens, law, output, at, action, n, first, sample, count, index, words):
    """Label the n selected tokens of a row and put in their place what ``action`` says."""
    ids, out, labels, mask_token_id = tokens.ids, output.ids, output.labels, output.mask_token_id
    random = 0
    for i in range(n):
        t = at[i]
        token = ids[t]
        labels[t] = token
        out[t] = mask_token_id if action[i] == MASK else token
        index[random] = t - first
        random += action[i] == RANDOM
    _replace(law, output, first, index, random, sample, words)
    return _note_positions(output, at, n, count)


@inlined
def _replace(law, output, first, index, n, sample, words):
    """Put a random id at each of the n positions ``index`` of a row."""
    out, replacement_ids = output.ids, output.replacement_ids
    gather_words(index, n, sample, law.c3 | _REPLACEMENT, law.seed, words)
    choices = np.uint64(replacement_ids.size if replacement_ids.size else output.vocab_size)
    for i in range(n):
        new = (np.uint64(words[i]) * choices) >> np.uint64(32)
        out[first + index[i]] = replacement_ids[new] if replacement_ids.size else new


@inlined
def _note_positions(output, at, n, count):
    """Write at[:n] behind the ``count`` positions that stand there, as far as there is room."""
    for i in range(min(n, output.positions.size - count)):
        output.positions[count + i] = at[i]
    return count + n


@inlined
def _mask_block(tokens, law, output, begin, size, first, words, at, index):
    """Mask what one rate for all selects of a block, given its words; (how many, how many random).

    The selected tokens are the bits of a word compared 64 at a time; all but the loop over those
    bits is free of branches. ``index`` takes the positions that are to become random.
    """
    ids, real, special, table = tokens.ids, tokens.real, tokens.special, tokens.table
    out, labels = output.ids, output.labels
    mask_token_id, ignore_index = output.mask_token_id, output.ignore_index
    mask_below, random_below = law.mask_below, law.random_below
    n = random = 0
    if law.select == 0:
        return n, random
    highest = np.uint32(law.select - 1)
    for group in range(0, size, 64):
        bits = _bits(words, group, size, highest)
        while bits:
            i = group + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            t = begin + i
            token = ids[t]
            ok = True
            if real.size:
                ok = real[t] != 0
            if special.size:
                ok = ok and not special[t]
            elif table.size:
                ok = ok and table[token if ok else 0]  # padding may hold any number
            r = np.int64(words[i])
            at[n] = t
            n += ok
            labels[t] = token if ok else ignore_index
            out[t] = mask_token_id if ok and r < mask_below else token
            index[random] = t - first
            random += ok and r >= mask_below and r < random_below
    return n, random


@kernel
def _mask_tokens(tokens, law, output, first_row, last_row):
    """Every token on its own. Returns (count, first index of an id outside [0, size), or -1)."""
    words = np.empty(BLOCK, np.uint32)
    above = np.empty(BLOCK, np.uint32)
    at = np.empty(BLOCK, np.int64)
    index = np.empty(BLOCK, np.int64)
    action = np.empty(BLOCK, np.uint8)
    count = 0
    for b in range(first_row, last_row):
        end = tokens.bounds[b + 1]
        bad = _copy_row(tokens, output, tokens.bounds[b], end)
        if bad >= 0:
            return count, bad
        first, sample = _sample(tokens, b)
        for begin in range(first, end, BLOCK):
            size = min(BLOCK, end - begin)
            fill_words(words[: (size + 3) & ~3], begin - first, sample, law.c3, law.seed)
            if not tokens.rates.size:
                n, random = _mask_block(tokens, law, output, begin, size, first, words, at, index)
                _replace(law, output, first, index, random, sample, words)
                count = _note_positions(output, at, n, count)
                continue
            _above_rate(words, tokens.rates[begin : begin + size], above)
            n = _keep_eligible(tokens, at, _select(above, begin, size, 1, at))
            for i in range(n):
                r, p = np.int64(words[at[i] - begin]), tokens.rates[at[i]]
                mask_below = _threshold(p * law.mask_share)
                action[i] = MASK + (r >= mask_below) + (r >= _threshold(p * law.both))
            count = _write(tokens, law, output, at, action, n, first, sample, count, index, words)
    return count, -1


@inlined
def _unit_slots(units, slots, table, numbers):
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
def _longest(tokens, first_row, last_row):
    longest = 0
    for b in range(first_row, last_row):
        longest = max(longest, tokens.bounds[b + 1] - tokens.bounds[b])
    return longest


@inlined
def _power_of_two(n):
    size = 1
    while size < n:
        size *= 2
    return size


@inlined
def _unit_words(units, sample, law, slots, table, numbers, words):
    """(slot of each token's unit or -1, how many slots); words[slot] is the unit's of stream 2.

    The slot is the unit itself where units are numbered densely, as they nearly always are.
    """
    highest = np.int64(-1)
    for t in range(units.size):
        highest = max(highest, units[t])
    if highest < words.size - 4:
        n = highest + 1
        fill_words(words[: (n + 3) & ~3], 0, sample, law.c3 | _UNIT, law.seed)
        return units, n
    n = _unit_slots(units, slots, table[: _power_of_two(2 * units.size)], numbers)
    gather_words(numbers, n, sample, law.c3 | _UNIT, law.seed, words)
    return slots[: units.size], n


@kernel
def _mask_units(tokens, law, output, first_row, last_row):
    """Whole units of tokens. Returns as ``_mask_tokens``."""
    longest = _longest(tokens, first_row, last_row)
    unit_words = np.empty(longest + 4, np.uint32)
    token_words = np.empty(BLOCK, np.uint32)
    slots = np.empty(longest, np.int64)
    table = np.empty(_power_of_two(2 * longest), np.int64)
    numbers = np.empty(longest, np.int64)
    words = np.empty(BLOCK, np.uint32)
    above = np.empty(BLOCK, np.uint32)
    at = np.empty(BLOCK, np.int64)
    index = np.empty(BLOCK, np.int64)
    action = np.empty(BLOCK, np.uint8)
    count = 0
    for b in range(first_row, last_row):
        row, end = tokens.bounds[b], tokens.bounds[b + 1]
        bad = _copy_row(tokens, output, row, end)
        if bad >= 0:
            return count, bad
        first, sample = _sample(tokens, b)
        slot, _ = _unit_words(tokens.units[row:end], sample, law, slots, table, numbers, unit_words)
        for begin in range(first, end, BLOCK):
            size = min(BLOCK, end - begin)
            here = slot[begin - row : begin - row + size]
            for i in range(size):
                token_words[i] = unit_words[max(here[i], 0)]
            if tokens.rates.size:
                _above_rate(token_words, tokens.rates[begin : begin + size], above)
                n = _select(above, begin, size, 1, at)
            else:
                n = _select(token_words, begin, size, law.select, at)
            n = _keep_eligible(tokens, at, n)
            _pick_by_word(tokens, law, at, n, first, sample, index, words, action)
            count = _write(tokens, law, output, at, action, n, first, sample, count, index, words)
    return count, -1


@inlined
def _key(word, position):
    return (np.uint64(word) << np.uint64(32)) | np.uint64(position)


@inlined
def _weigh(keys, n, rates):
    """Divide the words of n keys by the thresholds of their rates, and drop their positions.

    Returns (the sum of the thresholds, how many are not 0). ``rates`` begins at position 0.
    """
    total, eligible = np.int64(0), 0
    for i in range(n):
        below = _threshold(rates[keys[i] & np.uint64(0xFFFFFFFF)])
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
        low += keys[i] < _ROOM
    if low >= k and n <= 1 << 31:
        for i in range(n):
            key = (keys[i] << np.uint64(31)) | np.uint64(i)
            keys[i] = key if keys[i] < _ROOM else _NEVER
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
def _limit(keys, n, k, bins, some):
    """One more than the k-th smallest of n keys: k of them are below it."""
    if k == 0:
        return np.uint64(0)
    bins[:] = 0
    for i in range(n):
        bins[keys[i] >> np.uint64(56)] += 1
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
def _mask_budget(tokens, law, output, first_row, last_row):
    """Exactly k tokens or units: those with the k smallest keys. Returns as ``_mask_tokens``.

    A key is (word, position), or with rates of their own the word over the threshold.
    """
    longest = _longest(tokens, first_row, last_row)
    by_unit = tokens.units.size > 0
    words = np.empty(longest + 4, np.uint32)
    slots = np.empty(longest if by_unit else 0, np.int64)
    table = np.empty(_power_of_two(2 * longest) if by_unit else 0, np.int64)
    numbers = np.empty(longest if by_unit else 0, np.int64)
    entry = np.empty(longest if by_unit else 0, np.int64)  # of each slot: where its key is
    keys = np.empty(longest + 1, np.uint64)
    some = np.empty(longest + 1, np.uint64)
    bins = np.empty(256, np.int64)
    at = np.empty(longest + 1, np.int64)
    index = np.empty(longest, np.int64)
    action = np.empty(longest, np.uint8)
    count = 0
    for b in range(first_row, last_row):
        row, end = tokens.bounds[b], tokens.bounds[b + 1]
        bad = _copy_row(tokens, output, row, end)
        if bad >= 0:
            return count, bad
        first, sample = _sample(tokens, b)
        for t in range(first, end):
            at[t - first] = t
        n = _keep_eligible(tokens, at, end - first)
        entries = n  # of what the k are chosen from
        slot = slots
        if by_unit:
            slot, found = _unit_words(
                tokens.units[row:end], sample, law, slots, table, numbers, words
            )
            entry[:found] = -1
            entries = 0
            for i in range(n):
                s = slot[at[i] - row]
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
        chosen = _limit(keys, entries, k, bins, some)
        ranked = not by_unit or law.per_unit
        mask_below = random_below = np.uint64(0)
        if ranked:
            k_mask = (k * _threshold(law.mask_share) + _HALF) >> 32
            k_both = (k * _threshold(law.both) + _HALF) >> 32
            mask_below = _limit(keys, entries, k_mask, bins, some)
            random_below = _limit(keys, entries, k_both, bins, some)
        selected = 0
        for i in range(n):
            t = at[i]
            key = keys[entry[slot[t - row]] if by_unit else i]
            at[selected] = t
            action[selected] = MASK + (key >= mask_below) + (key >= random_below)
            selected += key < chosen
        if not ranked:
            _pick_by_word(tokens, law, at, selected, first, sample, index, words, action)
        count = _write(
            tokens, law, output, at, action, selected, first, sample, count, index, words
        )
    return count, -1


def mask_tokens(job: MaskJob) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # NumPy allocates faster than torch, and large arrays in huge pages
    ids = flat(job.input_ids, job.input_ids.dtype)
    masked, labels = (np.empty(tuple(job.input_ids.shape), ids.dtype) for _ in range(2))
    positions = np.empty(max(job.capacity, 0), np.int64)
    size = job.vocab_size if job.maskable is None else job.maskable.numel()
    real, special = flat_masks(job.attention_mask, job.special_tokens_mask)
    tokens = Tokens(
        ids,
        row_bounds(job.input_ids, job.cu_seqlens),
        real,
        special,
        flat(job.maskable, torch.bool),
        flat(job.units, torch.int64),
        flat(job.rates, torch.float64),
        flat(job.sample_ids, torch.int64).view(np.uint64),
    )
    law = Law(
        np.uint64(job.seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(job.epoch),
        job.rate,
        job.mask_share,
        min(job.mask_share + job.random_share, 1.0),
        *_thresholds(job.rate, job.mask_share, job.random_share),
        job.at_least_one,
        job.per_unit,
    )
    output = Output(
        masked.reshape(-1),
        labels.reshape(-1),
        positions,
        job.mask_token_id,
        flat(job.replacement_ids, torch.int64),
        job.vocab_size,
        job.ignore_index,
        size,
    )
    run = _mask_budget if job.budget else _mask_tokens if job.units is None else _mask_units
    rows = tokens.bounds.size - 1

    def part(begin: int, end: int) -> tuple[int, int, np.ndarray]:
        own = output
        if end - begin < rows:  # the positions of other parts are not known yet
            room = int(tokens.bounds[end] - tokens.bounds[begin])
            own = output._replace(positions=np.empty(min(positions.size, room), np.int64))
        return *run(tokens, law, own, begin, end), own.positions

    parts = over_rows(part, tokens.bounds)
    count = sum(count for count, _, _ in parts)
    for _, bad, _ in parts:
        if bad >= 0:
            raise outside_vocabulary(job.input_ids, bad, size)
    if len(parts) > 1:
        found = np.concatenate([own[:count] for count, _, own in parts])[: positions.size]
        positions[: found.size] = found
    positions[count:] = -1
    found_count = torch.tensor(count) if job.capacity >= 0 else torch.empty(0, dtype=torch.int64)
    return (
        torch.from_numpy(masked),
        torch.from_numpy(labels),
        found_count,
        torch.from_numpy(positions),
    )
