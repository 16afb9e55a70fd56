"""Masking on the CPU: each row is classified (mask, random, keep) and then written, in cache."""

import numba as nb
import numpy as np
import torch
from torch import Tensor

from maskkernels.mask.job import Job
from maskkernels.mask.policy import outside_vocabulary, thresholds
from maskkernels.rng._numba import counter_word, first_real, flat, hash_row, quad, row_bounds, word

NONE, MASK, RANDOM, KEEP = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
_HALF = np.int64(1 << 31)


@nb.njit(inline="always")
def _choose(word, mask_below, random_below):
    if word < mask_below:
        return MASK
    return RANDOM if word < random_below else KEEP


@nb.njit(inline="always")
def _threshold(p):
    return np.int64(p * 4294967296.0)


@nb.njit(inline="always")
def _eligible(ids, real, special, units, table, size, action):
    """Mark with KEEP the tokens of a row that may be masked, NONE the rest.

    Returns the first column whose id is outside [0, size), or -1.
    """
    for t in range(ids.size):
        action[t] = NONE
        if real.size and not real[t]:
            continue
        if ids[t] < 0 or ids[t] >= size:
            return t
        if special.size:
            ok = not special[t]
        else:
            ok = table.size == 0 or table[ids[t]]
        if ok and (units.size == 0 or units[t] >= 0):
            action[t] = KEEP
    return -1


@nb.njit(inline="always")
def _tokens(action, first, sample, seed, c3, select, mask_below, random_below):
    """Every eligible token on its own, at one rate: one Philox call for four tokens."""
    for start in range(first, action.size, 4):
        r0, r1, r2, r3 = quad(start - first, sample, c3, seed)
        for lane in range(min(4, action.size - start)):
            r = np.int64(r0 if lane == 0 else r1 if lane == 1 else r2 if lane == 2 else r3)
            t = start + lane
            if action[t] != NONE:
                action[t] = _choose(r, mask_below, random_below) if r < select else NONE


@nb.njit(inline="always")
def _varied(action, first, units, rates, sample, seed, c3, rate, mask_share, both, per_unit):
    """Tokens or units, each at its own rate."""
    c3_unit = c3 | np.uint32(2)
    last, last_word = np.int64(-1), np.int64(0)
    for t in range(first, action.size):
        if action[t] == NONE:
            continue
        p = rates[t] if rates.size else rate
        if units.size == 0:
            r = np.int64(word(t - first, sample, c3, seed))
            if r < _threshold(p):
                action[t] = _choose(r, _threshold(p * mask_share), _threshold(p * both))
            else:
                action[t] = NONE
            continue
        if units[t] != last:
            last = units[t]
            last_word = np.int64(word(last, sample, c3_unit, seed))
        if last_word < _threshold(p):
            r = np.int64(word(last if per_unit else t - first, sample, c3, seed))
            action[t] = _choose(r, _threshold(mask_share), _threshold(both))
        else:
            action[t] = NONE


@nb.njit(inline="always")
def _budget(
    action, first, units, sample, seed, c3, rate, mask_share, both, at_least_one, per_unit, keys
):
    """Exactly k of the eligible tokens or units: the k smallest (word, position)."""
    leaders = np.empty(0, np.int64)
    if units.size:
        leaders = _leaders(action, first, units)
    n = 0
    for t in range(first, action.size):
        if action[t] != NONE and (units.size == 0 or leaders[t] == t):
            keys[n] = _key(t, first, units, sample, seed, c3)
            n += 1
    k = (n * _threshold(rate) + _HALF) >> 32
    if at_least_one and n > 0 and k == 0:
        k = 1
    keys[:n].sort()
    k_mask = (k * _threshold(mask_share) + _HALF) >> 32
    k_both = (k * _threshold(both) + _HALF) >> 32
    ranked = units.size == 0 or per_unit
    for t in range(first, action.size):
        if action[t] == NONE:
            continue
        key = _key(leaders[t] if units.size else t, first, units, sample, seed, c3)
        if k == 0 or key > keys[k - 1]:
            action[t] = NONE
        elif ranked:
            if k_mask > 0 and key <= keys[k_mask - 1]:
                action[t] = MASK
            elif k_both > 0 and key <= keys[k_both - 1]:
                action[t] = RANDOM
            else:
                action[t] = KEEP
        else:
            r = np.int64(word(t - first, sample, c3, seed))
            action[t] = _choose(r, _threshold(mask_share), _threshold(both))


@nb.njit(inline="always")
def _key(t, first, units, sample, seed, c3):
    """(word, position) of the token or unit that ``t`` leads, as one sortable uint64."""
    if units.size:
        w = word(units[t], sample, c3 | np.uint32(2), seed)
    else:
        w = word(t - first, sample, c3, seed)
    return (w << np.uint64(32)) | np.uint64(t - first)


@nb.njit
def _leaders(action, first, units):
    """The first eligible column of each eligible token's unit."""
    leaders = np.full(units.size, -1, np.int64)
    rising, last = True, np.int64(-1)
    for t in range(first, units.size):
        if action[t] != NONE:
            rising = rising and units[t] >= last
            last = units[t]
    if rising:  # the usual case: a unit's tokens stand together, in order
        last, at = np.int64(-1), 0
        for t in range(first, units.size):
            if action[t] != NONE:
                if units[t] != last:
                    last, at = units[t], t
                leaders[t] = at
        return leaders
    seen = {np.int64(-1): -1}
    for t in range(first, units.size):
        if action[t] != NONE:
            if units[t] not in seen:
                seen[units[t]] = t
            leaders[t] = seen[units[t]]
    return leaders


@nb.njit(nogil=True, cache=True)
def _mask_rows(
    ids, bounds, real, special, table, replacement_ids, units, rates, sample_ids, seed, epoch_word,
    mask_token_id, vocab_size, size, rate, mask_share, both, select, mask_below, random_below,
    budget, at_least_one, per_unit, ignore_index, out, labels, positions,
):  # fmt: skip
    """Mask every row; returns (count, -1), or (count, flat index of an id outside [0, size))."""
    longest = 0
    for b in range(bounds.size - 1):
        longest = max(longest, bounds[b + 1] - bounds[b])
    scratch = np.empty(longest, np.uint8)
    keys = np.empty(longest if budget else 0, np.uint64)
    count = 0
    for b in range(bounds.size - 1):
        begin, end = bounds[b], bounds[b + 1]
        row = ids[begin:end]
        keep = real[begin:end] if real.size else real
        unit = units[begin:end] if units.size else units
        p = rates[begin:end] if rates.size else rates
        action = scratch[: end - begin]
        bad = _eligible(
            row, keep, special[begin:end] if special.size else special, unit, table, size, action
        )
        if bad >= 0:
            return count, begin + bad
        first = first_real(keep)
        sample = sample_ids[b] if sample_ids.size else hash_row(row, keep, first)
        if budget:
            _budget(
                action, first, unit, sample, seed, epoch_word, rate, mask_share, both,
                at_least_one, per_unit, keys,
            )  # fmt: skip
        elif unit.size or p.size:
            _varied(
                action, first, unit, p, sample, seed, epoch_word, rate, mask_share, both, per_unit
            )
        else:
            _tokens(action, first, sample, seed, epoch_word, select, mask_below, random_below)
        for t in range(row.size):
            token = row[t]
            labels[begin + t] = ignore_index
            if action[t] != NONE:
                labels[begin + t] = token
                if count < positions.size:
                    positions[count] = begin + t
                count += 1
                if action[t] == MASK:
                    token = mask_token_id
                elif action[t] == RANDOM:
                    w = word(t - first, sample, epoch_word | np.uint32(1), seed)
                    if replacement_ids.size:
                        token = replacement_ids[
                            (w * np.uint64(replacement_ids.size)) >> np.uint64(32)
                        ]
                    else:
                        token = (w * np.uint64(vocab_size)) >> np.uint64(32)
            out[begin + t] = token
    return count, -1


def mask_tokens(job: Job) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    masked = torch.empty_like(job.input_ids, memory_format=torch.contiguous_format)
    labels = torch.empty_like(masked)
    positions = torch.full((max(job.capacity, 0),), -1, dtype=torch.int64)
    size = job.vocab_size if job.maskable is None else job.maskable.numel()
    count, bad = _mask_rows(
        flat(job.input_ids, job.input_ids.dtype),
        row_bounds(job.input_ids, job.cu_seqlens),
        flat(job.attention_mask, torch.bool),
        flat(job.special_tokens_mask, torch.bool),
        flat(job.maskable, torch.bool),
        flat(job.replacement_ids, torch.int64),
        flat(job.units, torch.int64),
        flat(job.rates, torch.float64),
        flat(job.sample_ids, torch.int64).view(np.uint64),
        np.uint64(job.seed & 0xFFFFFFFFFFFFFFFF),
        counter_word(job.epoch, 0),
        job.mask_token_id,
        job.vocab_size,
        size,
        job.rate,
        job.mask_share,
        min(job.mask_share + job.random_share, 1.0),
        *thresholds(job.rate, job.mask_share, job.random_share),
        job.budget,
        job.at_least_one,
        job.per_unit,
        job.ignore_index,
        masked.view(-1).numpy(),
        labels.view(-1).numpy(),
        positions.numpy(),
    )
    if bad >= 0:
        raise outside_vocabulary(job.input_ids, bad, size)
    return (
        masked,
        labels,
        torch.tensor(count) if job.capacity >= 0 else torch.empty(0, dtype=torch.int64),
        positions,
    )
