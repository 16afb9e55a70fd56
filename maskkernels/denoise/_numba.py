"""Denoising on the CPU: first how long each row becomes, then the rows, each written once.

The law of ``reference.py``. Chosen places are bits of a row's bitmap, which one scan reads in
order; tokens are copied a stretch at a time.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from maskkernels.denoise._numba_rows import (
    PLAN,
    Infill,
    Marks,
    RowArrays,
    choose,
    copy_gap,
    copy_span,
    fill_first,
    inner_of,
    number_below,
    part_ends,
    sample_of,
    span_counts,
    word_of,
)
from maskkernels.denoise.job import Batch, CorruptedRows, DenoiseJob, batch_of, too_few_sentinels
from maskkernels.denoise.policy import SpanCorruption, TextInfilling, denoiser_table, poisson_table
from maskkernels.rng import threshold
from maskkernels.rng._numba import counter_word, fill_words, hash_rows
from maskkernels.rng.streams import DENOISER, GAP, LENGTH, NOISE, PLACE, SENTENCE
from maskkernels.runtime.jit import inlined, kernel, lowest_bit
from maskkernels.runtime.threads import over_rows
from maskkernels.tokens._numba import flat

_DENOISER, _NOISE, _GAP = np.uint64(DENOISER), np.uint64(NOISE), np.uint64(GAP)
_LENGTH, _PLACE, _SENTENCE = np.uint64(LENGTH), np.uint64(PLACE), np.uint64(SENTENCE)
_ONE = np.uint64(1)
_HALF = np.int64(1 << 31)
_HASHES = np.empty(0, np.uint64)


@kernel
def _plan_spans(rows, marks, plan, begins, target_begins, first_row, last_row):
    """The first row with too few sentinels, or -1; lengths go behind the row's place of begins."""
    for b in range(first_row, last_row):
        sample = sample_of(rows, b)
        begin, end = inner_of(rows, b)
        chosen = 0
        if marks.table.shape[0] > 1:
            w = np.int64(word_of(rows, sample, _DENOISER, 0))
            while w >= marks.table[chosen, 0]:
                chosen += 1
        entry = marks.table[chosen]
        noise, spans = span_counts(end - begin, entry[1], entry[2], entry[3])
        if spans + marks.final > marks.sentinels.size:
            plan[b].spans = spans
            return b
        plan[b].sample, plan[b].begin, plan[b].end = sample, begin, end
        plan[b].mode, plan[b].noise, plan[b].spans = entry[4], noise, spans
        length = rows.bounds[b + 1] - rows.bounds[b]
        begins[b + 1] = length - noise + spans + (entry[4] >= 0)
        target_begins[b + 1] = noise + spans + marks.final + (marks.eos >= 0)
    return -1


@kernel
def _write_spans(rows, marks, plan, begins, inputs, target_begins, targets, first_row, last_row):
    longest = most = 1
    for b in range(first_row, last_row):
        longest = max(longest, plan[b].end - plan[b].begin)
        most = max(most, plan[b].spans)
    bits = np.empty((longest + 63) >> 6, np.uint64)
    words = np.empty(most + 3, np.uint32)
    noise_ends, gap_ends = np.empty(most, np.int64), np.empty(most, np.int64)
    ids, sentinels, seed, c3 = rows.ids, marks.sentinels, rows.seed, rows.c3
    limit, target_limit = begins[last_row], target_begins[last_row]
    for b in range(first_row, last_row):
        begin, end, noise, spans = plan[b].begin, plan[b].end, plan[b].noise, plan[b].spans
        at, said = begins[b], target_begins[b]
        if plan[b].mode >= 0:
            inputs[at] = plan[b].mode
            at += 1
        at = copy_gap(ids, rows.bounds[b], begin, inputs, at, limit)
        here = begin
        if spans:
            sample, kept = plan[b].sample, end - begin - noise
            part_ends(seed, c3 | _NOISE, sample, noise, spans, bits, words, noise_ends)
            part_ends(seed, c3 | _GAP, sample, kept, spans, bits, words, gap_ends)
            taken = 0
            for i in range(spans):
                gap_end = begin + gap_ends[i] + taken
                at = copy_gap(ids, here, gap_end, inputs, at, limit)
                inputs[at] = targets[said] = sentinels[i]
                taken = noise_ends[i]
                here = begin + gap_ends[i] + taken
                said = copy_span(ids, gap_end, here, targets, said + 1, target_limit)
                at += 1
        copy_gap(ids, here, rows.bounds[b + 1], inputs, at, limit)
        if marks.final:
            targets[said] = sentinels[spans]
            said += 1
        if marks.eos >= 0:
            targets[said] = marks.eos


@inlined
def _lengths(rows, infill, sample, size, words, lengths):
    """(tokens masked, spans): the span lengths of a row in the order of their draws."""
    budget, taken, spans = 0, 0, 0
    if size > 0:
        budget = min(max((size * infill.ratio + _HALF) >> 32, 1), size)
    while taken < budget and spans < size:
        if spans & 31 == 0:  # 32 words at once
            fill_words(words, spans, sample, rows.c3 | _LENGTH, rows.seed)
        w, length = np.int64(words[spans & 31]), 0
        while w >= infill.table[length]:
            length += 1
        length = min(length, budget - taken)
        lengths[spans] = length
        taken += length
        spans += 1
    return taken, spans


@kernel
def _plan_infilling(rows, infill, plan, lengths, begins, first_row, last_row):
    """The lengths of row b's spans go to lengths[bounds[b]], lengths[bounds[b] + 1]...

    The row's own length goes to begins[b + 1].
    """
    words = np.empty(32, np.uint32)
    for b in range(first_row, last_row):
        sample = sample_of(rows, b)
        begin, end = inner_of(rows, b)
        row = rows.bounds[b]
        taken, spans = _lengths(rows, infill, sample, end - begin, words, lengths[row:])
        plan[b].sample, plan[b].begin, plan[b].end = sample, begin, end
        plan[b].noise, plan[b].spans = taken, spans
        begins[b + 1] = rows.bounds[b + 1] - row - taken + spans


@inlined
def _shuffle(rows, infill, sample, begin, end, words, starts, order, out):
    """Copy ids[begin:end] to ``out`` with its sentences in random order."""
    ids, ends = rows.ids, infill.ends
    count, fresh = 0, True
    for t in range(begin, end):
        starts[count] = t
        count += fresh
        token = ids[t]
        fresh = 0 <= token < ends.size and ends[token]
    starts[count] = end
    for i in range(count):
        order[i] = i
    fill_first(rows.seed, rows.c3 | _SENTENCE, sample, count, words)
    for i in range(count - 1, 0, -1):
        j = number_below(words[i], i + 1)
        order[i], order[j] = order[j], order[i]
    at = 0
    for i in range(count):
        at = copy_gap(ids, starts[order[i]], starts[order[i] + 1], out, at, end - begin)


@kernel
def _write_infilling(rows, infill, plan, lengths, begins, inputs, first_row, last_row):
    longest = most = 1
    for b in range(first_row, last_row):
        longest = max(longest, plan[b].end - plan[b].begin)
        most = max(most, plan[b].spans)
    bits = np.empty((longest + most + 63) >> 6, np.uint64)
    shuffled = infill.ends.size > 0
    words = np.empty((longest if shuffled else most) + 3, np.uint32)
    starts = np.empty(longest + 1 if shuffled else 0, np.int64)
    order = np.empty(longest if shuffled else 0, np.int64)
    body = np.empty(longest if shuffled else 0, rows.ids.dtype)
    limit = begins[last_row]
    for b in range(first_row, last_row):
        sample, begin, end, spans = plan[b].sample, plan[b].begin, plan[b].end, plan[b].spans
        size, row = end - begin, rows.bounds[b]
        at = copy_gap(rows.ids, row, begin, inputs, begins[b], limit)
        ids, here = rows.ids, begin
        if shuffled:
            _shuffle(rows, infill, sample, begin, end, words, starts, order, body)
            ids, here = body, 0
        stop = here + size
        if spans:
            turn = row + number_below(word_of(rows, sample, _LENGTH, size), spans)
            fill_first(rows.seed, rows.c3 | _PLACE, sample, spans, words)
            places = size - plan[b].noise + spans
            choose(bits, places, spans, words)
            done = 0
            for i in range((places + 63) >> 6):
                left = bits[i]
                while left:
                    gap = 64 * i + lowest_bit(left) - done
                    at = copy_gap(ids, here, here + gap, inputs, at, limit)
                    inputs[at] = infill.mask
                    at += 1
                    here += gap + lengths[turn]
                    turn = turn + 1 if turn + 1 < row + spans else row
                    done += gap + 1
                    left &= left - _ONE
        at = copy_gap(ids, here, stop, inputs, at, limit)
        copy_gap(rows.ids, end, rows.bounds[b + 1], inputs, at, limit)


def corrupt_spans(job: DenoiseJob, corruption: SpanCorruption) -> CorruptedRows:
    batch = batch_of(job, hash_rows)
    eos = -1 if corruption.eos_token_id is None else corruption.eos_token_id
    edges = [*corruption.edge_token_ids, *([eos] if eos >= 0 else [])]
    rows, count = _rows(batch, edges), batch.bounds.numel() - 1
    plan, begins, target_begins = np.empty(count, PLAN), _begins(count), _begins(count)
    marks = Marks(
        denoiser_table(corruption.denoisers),
        _array(corruption.sentinel_ids),
        int(corruption.final_sentinel),
        eos,
    )
    for b in over_rows(
        lambda i, j: _plan_spans(rows, marks, plan, begins, target_begins, i, j), rows.bounds
    ):
        if b >= 0:
            needed = int(plan[b]["spans"]) + marks.final
            size = int(rows.bounds[b + 1] - rows.bounds[b])
            raise too_few_sentinels(b, size, needed, marks.sentinels.size)
    np.add.accumulate(begins, out=begins)
    np.add.accumulate(target_begins, out=target_begins)
    inputs = np.empty(begins[-1], rows.ids.dtype)
    targets = np.empty(target_begins[-1], rows.ids.dtype)
    over_rows(
        lambda i, j: _write_spans(rows, marks, plan, begins, inputs, target_begins, targets, i, j),
        rows.bounds,
    )
    return CorruptedRows(*map(torch.from_numpy, (inputs, begins, targets, target_begins)))


def infill_text(job: DenoiseJob, infilling: TextInfilling) -> CorruptedRows:
    batch = batch_of(job, hash_rows)
    rows, count = _rows(batch, infilling.edge_token_ids), batch.bounds.numel() - 1
    plan, begins = np.empty(count, PLAN), _begins(count)
    ends = infilling.sentence_end_ids if infilling.permute_sentences else ()
    infill = Infill(
        infilling.mask_token_id,
        threshold(infilling.ratio),
        poisson_table(float(infilling.mean_span_length)),
        _table(ends),
    )
    lengths = np.empty(rows.ids.size, np.int32)  # a row has no more spans than tokens
    over_rows(lambda i, j: _plan_infilling(rows, infill, plan, lengths, begins, i, j), rows.bounds)
    np.add.accumulate(begins, out=begins)
    inputs = np.empty(begins[-1], rows.ids.dtype)
    over_rows(
        lambda i, j: _write_infilling(rows, infill, plan, lengths, begins, inputs, i, j),
        rows.bounds,
    )
    return CorruptedRows(
        torch.from_numpy(inputs), torch.from_numpy(begins), batch.ids, batch.bounds
    )


@lru_cache(maxsize=64)
def _array(ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids, np.int64)


@lru_cache(maxsize=64)
def _table(ids: tuple[int, ...]) -> np.ndarray:
    """Bool up to the highest of ``ids``, True at them."""
    table = np.zeros(max(ids, default=-1) + 1, np.bool_)
    table[list(ids)] = True
    return table


def _rows(batch: Batch, edges: Any) -> RowArrays:
    return RowArrays(
        batch.ids.numpy(),
        batch.bounds.numpy(),
        _HASHES
        if batch.sample_ids is None
        else flat(batch.sample_ids, torch.int64).view(np.uint64),
        np.uint64(batch.seed),
        counter_word(batch.epoch),
        _array(tuple(sorted(edges))),
    )


def _begins(count: int) -> np.ndarray:
    """Room for where ``count`` rows begin, and the last one ends."""
    begins = np.empty(count + 1, np.int64)
    begins[0] = 0
    return begins
