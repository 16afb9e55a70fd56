"""Masking on the CPU: copy a row, find the few selected tokens without a branch, write those.

The law of section "plain formula" in ``api.mask_tokens``, three times: for tokens on their own, for
units of tokens, and for an exact budget of either. A row's words and what is selected by them stay
in the first-level cache; tokens that are not selected cost a copy, a word and a comparison.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from maskkernels.mask._numba_budget import mask_budget
from maskkernels.mask._numba_rows import (
    BLOCK,
    Law,
    Output,
    Tokens,
    above_rate,
    bits_up_to,
    is_maskable,
    keep_eligible,
    note_positions,
    selected_below,
    take_row,
    threshold_of,
    write_random,
    write_selected,
)
from maskkernels.mask._numba_units import mask_units
from maskkernels.mask.actions import MASK
from maskkernels.mask.job import MaskJob
from maskkernels.mask.policy import outside_vocabulary, thresholds
from maskkernels.rng._numba import counter_word, fill_words
from maskkernels.runtime.jit import inlined, kernel, lowest_bit
from maskkernels.runtime.threads import over_rows
from maskkernels.tokens._numba import flat, flat_masks, row_bounds
from maskkernels.tokens.checks import check_drawn_from, check_rates

_thresholds = lru_cache(maxsize=64)(thresholds)


@inlined
def _mask_block(tokens, law, output, begin, size, first, words, at, index):
    """Mask what one rate for all selects of a block, given its words; (how many, how many random).

    The selected tokens are the bits of a word compared 64 at a time; all but the loop over those
    bits is free of branches. ``index`` takes the positions that are to become random.
    """
    real, special, table = tokens.real, tokens.special, tokens.table
    out, labels = output.ids, output.labels
    mask_token_id, ignore_index = output.mask_token_id, output.ignore_index
    mask_below, random_below = law.mask_below, law.random_below
    n = random = 0
    if law.select == 0:
        return n, random
    highest = np.uint32(law.select - 1)
    for group in range(0, size, 64):
        bits = bits_up_to(words, group, size, highest)
        while bits:
            i = group + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            t = begin + i
            token = out[t]
            ok = True
            if real.size:
                ok = real[t] != 0
            if special.size:
                ok = ok and special[t] == 0
            elif table.size:
                ok = ok and is_maskable(table, token)
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
        bad, _, end, first, sample = take_row(tokens, output, b)
        if bad >= 0:
            return count, bad
        for begin in range(first, end, BLOCK):
            size = min(BLOCK, end - begin)
            fill_words(words[: (size + 3) & ~3], begin - first, sample, law.c3, law.seed)
            if not tokens.rates.size:
                n, random = _mask_block(tokens, law, output, begin, size, first, words, at, index)
                write_random(law, output, first, index, random, sample, words)
                count = note_positions(output, at, n, count)
                continue
            above_rate(words, tokens.rates[begin : begin + size], above)
            n = keep_eligible(tokens, output, at, selected_below(above, begin, size, 1, at))
            for i in range(n):
                r, p = np.int64(words[at[i] - begin]), tokens.rates[at[i]]
                mask_below = threshold_of(p * law.mask_share)
                action[i] = MASK + (r >= mask_below) + (r >= threshold_of(p * law.both))
            count = write_selected(
                tokens, law, output, at, action, n, first, sample, count, index, words
            )
    return count, -1


def mask_tokens(job: MaskJob) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bounds = row_bounds(job.input_ids, job.cu_seqlens)
    # NumPy allocates faster than torch, and large arrays in huge pages
    ids = flat(job.input_ids, job.input_ids.dtype)
    masked, labels = (np.empty(tuple(job.input_ids.shape), ids.dtype) for _ in range(2))
    positions = np.empty(max(job.capacity, 0), np.int64)
    size = job.vocab_size if job.maskable is None else job.maskable.numel()
    check_drawn_from(job.replacement_ids, size)
    check_rates("rates", job.rates)
    real, special = flat_masks(job.attention_mask, job.special_tokens_mask)
    tokens = Tokens(
        ids,
        bounds,
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
    run = mask_budget if job.budget else _mask_tokens if job.units is None else mask_units
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
