"""What the masking kernels on the CPU share: their arguments, and the steps of a row."""

from typing import Any, NamedTuple

import numpy as np

from maskkernels.mask.actions import MASK, RANDOM
from maskkernels.rng._numba import gather_words, hash_row
from maskkernels.rng.streams import REPLACEMENT
from maskkernels.runtime.jit import at_most, inlined, lowest_bit
from maskkernels.tokens._numba import first_real

BLOCK = 1024  # tokens looked at together
_REPLACEMENT = np.uint64(REPLACEMENT)


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
def threshold_of(p):
    return np.int64(p * 4294967296.0)


@inlined
def copy_row(tokens, output, begin, end):
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
def sample_of(tokens, b):
    """(index of the row's first real token, sample id)."""
    begin, end = tokens.bounds[b], tokens.bounds[b + 1]
    real = tokens.real[begin:end] if tokens.real.size else tokens.real
    first = first_real(real)
    if tokens.sample_ids.size:
        return begin + first, tokens.sample_ids[b]
    return begin + first, hash_row(tokens.ids[begin:end], real, first)


@inlined
def take_row(tokens, output, b):
    """Copy row b: (its first real id outside the vocabulary or -1, where it begins and ends, its
    first real token, its sample id)."""
    begin, end = tokens.bounds[b], tokens.bounds[b + 1]
    bad = copy_row(tokens, output, begin, end)
    first, sample = sample_of(tokens, b)
    return bad, begin, end, first, sample


@inlined
def bits_up_to(words, group, size, highest):
    """Bit i: words[group + i] <= highest; for the 64 words from ``group``, none past ``size``."""
    bits = at_most(words, group, highest)
    if size - group < 64:
        bits &= (np.uint64(1) << np.uint64(size - group)) - np.uint64(1)
    return bits


@inlined
def selected_below(words, begin, size, select, at):
    """Put begin + i into ``at`` for each of ``size`` words below ``select``; how many there are."""
    n = 0
    if select == 0:
        return n
    highest = np.uint32(select - 1)
    for group in range(0, size, 64):
        bits = bits_up_to(words, group, size, highest)
        while bits:
            at[n] = begin + group + lowest_bit(bits)
            n += 1
            bits &= bits - np.uint64(1)
    return n


@inlined
def above_rate(words, rates, above):
    """above[i] = 0 where words[i] < T(rates[i]), else 1: w < floor(x) is w + 1 <= x, in lanes."""
    for i in range(rates.size):
        below = np.float64(words[i]) + 1.0 <= rates[i] * 4294967296.0
        above[i] = np.uint32(0) if below else np.uint32(1)


@inlined
def is_maskable(table, token):
    """Look up an id without a branch; an id outside, which only padding has, gets any answer."""
    return table[min(np.uint64(token), np.uint64(table.size - 1))]  # a negative id is a huge one


@inlined
def keep_eligible(tokens, output, at, n):
    """Drop from at[:n] what may not be masked; how many are left. The row has been copied."""
    real, special, table, units = tokens.real, tokens.special, tokens.table, tokens.units
    ids = output.ids  # of the copy, which no other thread writes to
    left = 0
    for i in range(n):
        t = at[i]
        ok = True
        if real.size:
            ok = real[t] != 0
        if units.size:
            ok = ok and units[t] >= 0
        if special.size:
            ok = ok and special[t] == 0
        elif table.size:
            ok = ok and is_maskable(table, ids[t])
        at[left] = t
        left += ok
    return left


@inlined
def pick_by_word(tokens, law, at, n, first, sample, index, words, action):
    """Choose for each selected token by its own word of stream 0, or by its unit's."""
    if law.per_unit:
        units = tokens.units
        for i in range(n):
            index[i] = units[at[i]]
    else:
        for i in range(n):
            index[i] = at[i] - first
    gather_words(index, n, sample, law.c3, law.seed, words)
    mask_below, random_below = threshold_of(law.mask_share), threshold_of(law.both)
    for i in range(n):
        r = np.int64(words[i])
        action[i] = MASK + (r >= mask_below) + (r >= random_below)


@inlined
def write_selected(tokens, law, output, at, action, n, first, sample, count, index, words):
    """Label the n selected tokens of a row and put in their place what ``action`` says."""
    out, labels, mask_token_id = output.ids, output.labels, output.mask_token_id
    random = 0
    for i in range(n):
        t = at[i]
        token = out[t]
        labels[t] = token
        out[t] = mask_token_id if action[i] == MASK else token
        index[random] = t - first
        random += action[i] == RANDOM
    write_random(law, output, first, index, random, sample, words)
    return note_positions(output, at, n, count)


@inlined
def write_random(law, output, first, index, n, sample, words):
    """Put a random id at each of the n positions ``index`` of a row."""
    out, replacement_ids = output.ids, output.replacement_ids
    gather_words(index, n, sample, law.c3 | _REPLACEMENT, law.seed, words)
    choices = np.uint64(replacement_ids.size if replacement_ids.size else output.vocab_size)
    for i in range(n):
        new = (np.uint64(words[i]) * choices) >> np.uint64(32)
        out[first + index[i]] = replacement_ids[new] if replacement_ids.size else new


@inlined
def note_positions(output, at, n, count):
    """Write at[:n] after the ``count`` positions already there, up to the capacity."""
    for i in range(min(n, output.positions.size - count)):
        output.positions[count + i] = at[i]
    return count + n
