"""Denoising on the GPU: a few kernels, each with one program a row.

The law of ``reference.py``, without its loops over earlier steps. First how long each row becomes
(``_plan_*``), then which places are chosen (``_choose``), then the rows. A kernel never reads what
another lane of it has written: what it needs comes from an earlier kernel, so nothing depends on
when a store is seen. Choices and shuffles, where a step depends on those before it, are folds that
each lane does for itself over the draws.

No kernel here waits for the host: results have room for whatever the draws may be, and lengths
stay on the device. Only the lists of the options are uploaded, once for each.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.backend import numbers_on
from maskkernels.denoise.job import DenoiseJob, check_longest, spans_capacity
from maskkernels.denoise.policy import SpanCorruption, TextInfilling, denoiser_table, poisson_table
from maskkernels.rng import threshold
from maskkernels.rng._triton import hash_samples, layout_of, word, words_of_quads
from maskkernels.rng.streams import DENOISER, GAP, LENGTH, NOISE, PLACE, SENTENCE
from maskkernels.tokens.layout import safe_bounds

BLOCK = 512  # tokens or places of a row looked at together
STEPS = 128  # steps of a choice or a shuffle done together
_DENOISER, _NOISE, _GAP = map(tl.constexpr, (DENOISER, NOISE, GAP))
_LENGTH, _PLACE, _SENTENCE = map(tl.constexpr, (LENGTH, PLACE, SENTENCE))
_FIELDS = tl.constexpr(5)  # of a row's plan: begin and end of what may be corrupted (flat), tokens
# of noise, spans, then the mode token (or -1) or which length comes first
_CHOICE = tl.constexpr(4)  # size, count, where its draws are, where its flags are
# Numbers that change from call to call, and must not compile a kernel anew when they do.
_VARYING = [
    "edges", "denoisers", "entries", "ends", "limit", "beside", "ratio", "eos_token_id",
    "mask_token_id", "seed", "epoch_word",
]  # fmt: skip


@triton.jit
def _among(ids, list_ptr, count):
    """Which of ``ids`` are in a list."""
    found = ids != ids
    for i in range(count):
        found = found | (ids == tl.load(list_ptr + i))
    return found


@triton.jit
def _inner(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK: tl.constexpr):
    """(begin, end) of a row without the tokens that stay at its ends."""
    begin, start = row_end, row_begin
    while start < begin:
        offs = start + tl.arange(0, BLOCK)
        ok = offs < row_end
        ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
        inner = ok & (_among(ids, edges_ptr, edges) == 0)
        begin = tl.min(tl.where(inner, offs, row_end), 0)
        start += BLOCK
    end, stop = begin, row_end
    while stop > end:
        stop -= BLOCK
        offs = stop + tl.arange(0, BLOCK)
        ok = (offs >= begin) & (offs < row_end)
        ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
        inner = ok & (_among(ids, edges_ptr, edges) == 0)
        end = tl.max(tl.where(inner, offs + 1, begin), 0)
    return begin, end


@triton.jit
def _word(index, sample, c3, seed):
    """One word, as int64."""
    return word(index, sample, c3, seed).to(tl.int64)


@triton.jit
def _words(start, sample, c3, seed, BLOCK: tl.constexpr):
    """The words of start..start + BLOCK - 1 as int64; start is a multiple of four."""
    quads = (start >> 2) + tl.arange(0, BLOCK // 4).to(tl.int64)
    return words_of_quads(quads, sample, c3, seed).to(tl.int64)


@triton.jit(do_not_specialize=_VARYING)
def _plan_spans(
    ids_ptr, bounds_ptr, sample_ids_ptr, edges_ptr, odds_ptr, plan_ptr, choices_ptr, draws_ptr,
    lengths_ptr, target_lengths_ptr, edges: tl.int64, denoisers: tl.int64, limit: tl.int64,
    beside: tl.int64, seed: tl.int64, epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Noise, spans and lengths of a row, and the draws that cut its noise and its context."""
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    sample = tl.load(sample_ids_ptr + b)
    begin, end = _inner(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK)
    zero = tl.full([], 0, tl.int64)
    w, chosen = _word(zero, sample, epoch_word | _DENOISER, seed), zero
    for k in range(denoisers):
        chosen += (w >= tl.load(odds_ptr + 5 * k)).to(tl.int64)
    entry = odds_ptr + 5 * chosen
    density, mean = tl.load(entry + 1), tl.load(entry + 2)
    prefix, mode = tl.load(entry + 3), tl.load(entry + 4)
    size = end - begin
    noise = tl.minimum(tl.maximum((size * density + (1 << 31)) >> 32, 1), size - 1)
    spans = ((noise << 16) + mean // 2) // mean
    spans = tl.minimum(tl.minimum(tl.maximum(spans, 1), noise), size - noise)
    spans = tl.minimum(tl.where(prefix != 0, 1, spans), limit)
    some = (size > 1) & (spans > 0)
    noise, spans = tl.where(some, noise, 0), tl.where(some, spans, 0)
    kept, count = size - noise, tl.maximum(spans - 1, 0)
    plan = plan_ptr + b * _FIELDS
    tl.store(plan, begin)
    tl.store(plan + 1, end)
    tl.store(plan + 2, noise)
    tl.store(plan + 3, spans)
    tl.store(plan + 4, mode)
    length = row_end - row_begin - noise + spans + (mode >= 0).to(tl.int64)
    tl.store(lengths_ptr + b + 1, length)
    tl.store(target_lengths_ptr + b + 1, noise + spans + beside)
    for which in tl.static_range(2):
        if which == 0:
            cuts, c3, draws, flags = noise - 1, epoch_word | _NOISE, begin, begin
        else:  # without spans, nothing is cut
            cuts = tl.where(some, kept - 1, -1)
            c3, draws, flags = epoch_word | _GAP, begin + spans, begin + noise
        choice = choices_ptr + (2 * b + which) * _CHOICE
        tl.store(choice, cuts)
        tl.store(choice + 1, count)
        tl.store(choice + 2, draws)
        tl.store(choice + 3, flags)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            drawn = (_words(start, sample, c3, seed, BLOCK) * (cuts - count + i + 1)) >> 32
            tl.store(draws_ptr + draws + i, drawn, mask=i < count)


@triton.jit
def _choose(choices_ptr, draws_ptr, flags_ptr, BLOCK: tl.constexpr):
    """Set the flags of the places that Floyd's algorithm chooses.

    Step i takes its draw, or its highest place (size - count + i) if the draw is taken. Whether it
    is, going back from step i with the place it drew: an earlier step that drew that place, then it
    is; the step whose highest place it is, then it is if that step's own draw was taken before.
    """
    at = choices_ptr + tl.program_id(0).to(tl.int64) * _CHOICE
    size, count = tl.load(at), tl.load(at + 1)
    draws, flags = draws_ptr + tl.load(at + 2), flags_ptr + tl.load(at + 3)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        drawn = tl.load(draws + i, mask=i < count, other=-1)
        place, taken = drawn, i < 0
        last = tl.minimum(start + BLOCK, count) - 1
        for back in range(last):
            k = last - 1 - back
            other = tl.load(draws + k)
            taken = taken | ((k < i) & (other == place))
            place = tl.where((k < i) & (place == size - count + k), other, place)
        found = tl.where(taken, size - count + i, drawn)
        tl.store(flags + found, 1, mask=i < count)


@triton.jit
def _ends(choices_ptr, flags_ptr, until_ptr, BLOCK: tl.constexpr):
    """Where each part of a composition ends, in order: behind each cut, and at the end of all.

    They take the place of the draws and one more.
    """
    at = choices_ptr + tl.program_id(0).to(tl.int64) * _CHOICE
    size = tl.load(at)
    until, flags = until_ptr + tl.load(at + 2), flags_ptr + tl.load(at + 3)
    done = tl.full([], 0, tl.int64)
    for start in range(0, size + 1, BLOCK):
        place = start + tl.arange(0, BLOCK)
        cut = tl.load(flags + place, mask=place < size, other=0) != 0
        cut = (cut | (place == size)).to(tl.int32)
        slot = done + tl.cumsum(cut, 0) - cut
        tl.store(until + slot, place + 1, mask=cut != 0)
        done += tl.sum(cut, 0)


@triton.jit(do_not_specialize=_VARYING)
def _write_spans(
    ids_ptr, bounds_ptr, plan_ptr, flags_ptr, until_ptr, sentinels_ptr, begins_ptr,
    target_begins_ptr, inputs_ptr, targets_ptr, eos_token_id: tl.int64,
    FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    plan = plan_ptr + b * _FIELDS
    begin, end, noise = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    spans, mode = tl.load(plan + 3), tl.load(plan + 4)
    kept = end - begin - noise
    inputs = inputs_ptr + tl.load(begins_ptr + b)
    tl.store(inputs, mode, mask=mode >= 0)
    inputs += (mode >= 0).to(tl.int64)
    done = tl.full([], 0, tl.int64)  # spans
    for start in range(0, row_end - row_begin - noise, BLOCK):  # what is not noise
        t = start + tl.arange(0, BLOCK)
        ok = t < row_end - row_begin - noise
        gap = t - (begin - row_begin)
        inside = (gap >= 0) & (gap < kept)
        last = tl.load(flags_ptr + begin + noise + gap, mask=inside, other=0) != 0
        last = (last | ((gap == kept - 1) & (spans > 0))).to(tl.int32)
        span = done + tl.cumsum(last, 0) - last
        before = tl.load(until_ptr + begin + span - 1, mask=ok & (span > 0), other=0)
        ids = tl.load(ids_ptr + row_begin + t + before, mask=ok, other=0)
        tl.store(inputs + t + span, ids, mask=ok)
        sentinel = tl.load(sentinels_ptr + span, mask=last != 0, other=0)
        tl.store(inputs + t + span + 1, sentinel, mask=last != 0)
        done += tl.sum(last, 0)
    targets = targets_ptr + tl.load(target_begins_ptr + b)
    tl.store(targets, tl.load(sentinels_ptr), mask=(spans > 0) | FINAL)
    done = tl.full([], 0, tl.int64)
    for start in range(0, noise, BLOCK):
        t = start + tl.arange(0, BLOCK)
        ok = t < noise
        last = tl.load(flags_ptr + begin + t, mask=ok, other=0) != 0
        last = (last | (t == noise - 1)).to(tl.int32)
        span = done + tl.cumsum(last, 0) - last
        before = tl.load(until_ptr + begin + spans + span, mask=ok, other=0)
        ids = tl.load(ids_ptr + begin + t + before, mask=ok, other=0)
        tl.store(targets + 1 + t + span, ids, mask=ok)
        more = (last != 0) & ((span + 1 < spans) | FINAL)
        sentinel = tl.load(sentinels_ptr + span + 1, mask=more, other=0)
        tl.store(targets + 2 + t + span, sentinel, mask=more)
        done += tl.sum(last, 0)
    stop = targets_ptr + tl.load(target_begins_ptr + b + 1)
    tl.store(stop - 1, eos_token_id, mask=eos_token_id >= 0)


@triton.jit(do_not_specialize=_VARYING)
def _plan_infilling(
    ids_ptr, bounds_ptr, sample_ids_ptr, edges_ptr, odds_ptr, plan_ptr, choices_ptr, draws_ptr,
    until_ptr, lengths_ptr, edges: tl.int64, entries: tl.int64, ratio: tl.int64, seed: tl.int64,
    epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spans and length of a row, what its spans take one after the other, and where masks stand.

    until[begin + i] is what the first i + 1 spans take, in the order of their draws.
    """
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    sample = tl.load(sample_ids_ptr + b)
    begin, end = _inner(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK)
    size = end - begin
    budget = tl.minimum(tl.maximum((size * ratio + (1 << 31)) >> 32, 1), size)
    zero = tl.full([], 0, tl.int64)
    spans, taken, start = zero, zero, zero
    while (taken < budget) & (start < size):
        i = start + tl.arange(0, BLOCK)
        w = _words(start, sample, epoch_word | _LENGTH, seed, BLOCK)
        length = tl.zeros([BLOCK], tl.int64)
        for k in range(entries):
            length += (w >= tl.load(odds_ptr + k)).to(tl.int64)
        up_to = taken + tl.cumsum(length, 0)
        used = (i < size) & (up_to - length < budget)
        tl.store(until_ptr + begin + i, tl.minimum(up_to, budget), mask=used)
        spans += tl.sum(used.to(tl.int64), 0)
        taken += tl.sum(tl.where(used, length, 0), 0)
        start += BLOCK
    taken = tl.minimum(taken, budget)
    places = size - taken + spans
    plan = plan_ptr + b * _FIELDS
    tl.store(plan, begin)
    tl.store(plan + 1, end)
    tl.store(plan + 2, taken)
    tl.store(plan + 3, spans)
    tl.store(plan + 4, (_word(size, sample, epoch_word | _LENGTH, seed) * spans) >> 32)
    tl.store(lengths_ptr + b + 1, row_end - row_begin - taken + spans)
    choice = choices_ptr + b * _CHOICE
    tl.store(choice, places)
    tl.store(choice + 1, spans)
    tl.store(choice + 2, begin)
    tl.store(choice + 3, 2 * begin)
    for start in range(0, spans, BLOCK):
        i = start + tl.arange(0, BLOCK)
        w = _words(start, sample, epoch_word | _PLACE, seed, BLOCK)
        tl.store(draws_ptr + begin + i, (w * (places - spans + i + 1)) >> 32, mask=i < spans)


@triton.jit(do_not_specialize=_VARYING)
def _write_infilling(
    ids_ptr, bounds_ptr, plan_ptr, flags_ptr, until_ptr, begins_ptr, inputs_ptr,
    mask_token_id: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    row_begin = tl.load(bounds_ptr + b)
    plan = plan_ptr + b * _FIELDS
    begin, end, taken = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    spans, first = tl.load(plan + 3), tl.load(plan + 4)
    inputs = inputs_ptr + tl.load(begins_ptr + b)
    length = tl.load(begins_ptr + b + 1) - tl.load(begins_ptr + b)
    places = end - begin - taken + spans
    skipped = tl.load(until_ptr + begin + first - 1, mask=first > 0, other=0).to(tl.int64)
    done = tl.full([], 0, tl.int64)  # spans
    for start in range(0, length, BLOCK):
        t = start + tl.arange(0, BLOCK)
        ok = t < length
        place = t - (begin - row_begin)
        inside = (place >= 0) & (place < places)
        mask = tl.load(flags_ptr + 2 * begin + place, mask=inside, other=0).to(tl.int32)
        span = done + tl.cumsum(mask, 0) - mask
        turn = first + span  # the lengths go round
        around = turn > spans
        turn = tl.where(around, turn - spans, turn)
        before = tl.load(until_ptr + begin + turn - 1, mask=ok & (turn > 0), other=0).to(tl.int64)
        before += tl.where(around, taken, 0) - skipped
        at = row_begin + t - span + before
        ids = tl.load(ids_ptr + at, mask=ok & (mask == 0), other=0).to(tl.int64)
        tl.store(inputs + t, tl.where(mask != 0, mask_token_id, ids), mask=ok)
        done += tl.sum(mask, 0)


@triton.jit
def _opens(ids_ptr, offs, begin, end, list_ptr, ends):
    """Which tokens are the first of a sentence."""
    ok = (offs >= begin) & (offs < end)
    ids = tl.load(ids_ptr + offs - 1, mask=ok & (offs > begin), other=0).to(tl.int64)
    return (ok & ((offs == begin) | _among(ids, list_ptr, ends))).to(tl.int32)


@triton.jit(do_not_specialize=_VARYING)
def _sentences(
    ids_ptr, plan_ptr, sample_ids_ptr, list_ptr, starts_ptr, turns_ptr, sentences_ptr,
    ends: tl.int64, seed: tl.int64, epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many sentences a row has, where they start, and what each changes places with."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(plan_ptr + b * _FIELDS), tl.load(plan_ptr + b * _FIELDS + 1)
    sample = tl.load(sample_ids_ptr + b)
    count = tl.full([], 0, tl.int64)
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        opens = _opens(ids_ptr, offs, begin, end, list_ptr, ends)
        slot = count + tl.cumsum(opens, 0) - opens
        tl.store(starts_ptr + begin + slot, offs - begin, mask=opens != 0)
        count += tl.sum(opens, 0)
    tl.store(sentences_ptr + b, count)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        w = _words(start, sample, epoch_word | _SENTENCE, seed, BLOCK)
        tl.store(turns_ptr + begin + i, (w * (i + 1)) >> 32, mask=i < count)


@triton.jit
def _order(plan_ptr, sentences_ptr, starts_ptr, turns_ptr, shifts_ptr, BLOCK: tl.constexpr):
    """How far each sentence of a row moves.

    A Fisher-Yates shuffle from the last place down: step k exchanges places k and turns[k]. What
    is at place i in the end was at turns[i] before step i; going up from there, it came from place
    k if step k exchanged it.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(plan_ptr + b * _FIELDS), tl.load(plan_ptr + b * _FIELDS + 1)
    count = tl.load(sentences_ptr + b)
    starts, turns = starts_ptr + begin, turns_ptr + begin
    filled = tl.full([], 0, tl.int64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ok = i < count
        sentence = tl.load(turns + i, mask=ok, other=-1).to(tl.int64)
        for k in range(start + 1, count):
            sentence = tl.where((k > i) & (tl.load(turns + k) == sentence), k, sentence)
        opens = tl.load(starts + sentence, mask=ok, other=0).to(tl.int64)
        inner = ok & (sentence + 1 < count)
        closes = tl.load(starts + sentence + 1, mask=inner, other=0).to(tl.int64)
        length = tl.where(ok, tl.where(inner, closes, end - begin) - opens, 0)
        to = filled + tl.cumsum(length, 0) - length
        tl.store(shifts_ptr + begin + sentence, to - opens, mask=ok)
        filled += tl.sum(length, 0)


@triton.jit(do_not_specialize=_VARYING)
def _permute(
    ids_ptr, bounds_ptr, plan_ptr, list_ptr, shifts_ptr, out_ptr, ends: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The tokens of a row with its sentences where they belong."""
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    begin, end = tl.load(plan_ptr + b * _FIELDS), tl.load(plan_ptr + b * _FIELDS + 1)
    count = tl.full([], 0, tl.int64)
    for start in range(row_begin, row_end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        ok = offs < row_end
        opens = _opens(ids_ptr, offs, begin, end, list_ptr, ends)
        sentence = count + tl.cumsum(opens, 0) - 1
        inside = (offs >= begin) & (offs < end)
        shift = tl.load(shifts_ptr + begin + sentence, mask=inside, other=0)
        tl.store(out_ptr + offs + shift, tl.load(ids_ptr + offs, mask=ok, other=0), mask=ok)
        count += tl.sum(opens, 0)


class _Batch(NamedTuple):
    """Rows without padding, and where their words come from."""

    ids: Tensor  # [N], rows end to end; what is behind them belongs to none
    bounds: Tensor  # int64 [B + 1]
    sample_ids: Tensor  # int64 [B]
    samples: int
    seed: int
    epoch_word: int


class _Scratch(NamedTuple):
    """What one kernel leaves for the next."""

    plan: Tensor  # int64 [B, 5]
    choices: Tensor  # int64 [B * n, 4] for n choices a row
    draws: Tensor  # int32 [N]
    flags: Tensor  # int8, 1 at chosen places
    lengths: Tensor  # int64 [B + 1], 0 and the length of each row


def corrupt_spans(
    rows: DenoiseJob, corruption: SpanCorruption
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = _batch(rows)
    ids, bounds, sample_ids, samples, seed, epoch_word = batch
    room, target_room = spans_capacity(ids.numel(), samples, corruption)
    inputs, targets = ids.new_zeros(room), ids.new_zeros(target_room)
    scratch, target_lengths = _scratch(batch, 2, ids.numel()), bounds.new_zeros(samples + 1)
    if not samples:
        return inputs, scratch.lengths, targets, target_lengths
    eos = -1 if corruption.eos_token_id is None else corruption.eos_token_id
    final, table = corruption.final_sentinel, denoiser_table(corruption.denoisers)
    edges = (*corruption.edge_token_ids, *([eos] if eos >= 0 else []))
    plan, choices, draws, flags, lengths = scratch
    _plan_spans[samples,](
        ids, bounds, sample_ids, _list(edges, ids), _list(table.reshape(-1).tolist(), ids),
        plan, choices, draws, lengths, target_lengths, len(edges), len(table),
        len(corruption.sentinel_ids) - final, final + (eos >= 0), seed, epoch_word, BLOCK,
    )  # fmt: skip
    begins, target_begins = lengths.cumsum(0), target_lengths.cumsum(0)
    _choose[2 * samples,](choices, draws, flags, STEPS)
    _ends[2 * samples,](choices, flags, draws, BLOCK)
    _write_spans[samples,](
        ids, bounds, plan, flags, draws, _list(corruption.sentinel_ids, ids), begins,
        target_begins, inputs, targets, eos, final, BLOCK,
    )  # fmt: skip
    return inputs, begins, targets, target_begins


def infill_text(
    rows: DenoiseJob, infilling: TextInfilling
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = _batch(rows)
    ids, bounds, sample_ids, samples, seed, epoch_word = batch
    inputs = ids.new_zeros(2 * ids.numel())  # a draw of a length is at most one mask
    plan, choices, draws, flags, lengths = _scratch(batch, 1, 2 * ids.numel())
    if not samples:
        return inputs, lengths, ids.clone(), bounds.clone()
    ends = torch.empty_like(draws)
    edges, table = infilling.edge_token_ids, poisson_table(float(infilling.mean_span_length))
    _plan_infilling[samples,](
        ids, bounds, sample_ids, _list(edges, ids),
        _list(table.tolist(), ids), plan, choices, draws, ends, lengths,
        len(edges), len(table), threshold(infilling.ratio), seed, epoch_word, BLOCK,
    )  # fmt: skip
    begins = lengths.cumsum(0)
    body = ids
    if infilling.permute_sentences:
        body = _shuffled(batch, plan, infilling.sentence_end_ids)
    _choose[samples,](choices, draws, flags, STEPS)
    _write_infilling[samples,](
        body, bounds, plan, flags, ends, begins, inputs, infilling.mask_token_id, BLOCK
    )
    return inputs, begins, ids.clone(), bounds.clone()


def _batch(rows: DenoiseJob) -> _Batch:
    input_ids, sample_ids, cu_seqlens, attention_mask, seed, epoch = rows
    ids, samples = input_ids.reshape(-1).contiguous(), rows.samples
    n = ids.numel()
    check_longest(n if cu_seqlens is not None else input_ids.shape[1])  # all that is known
    if sample_ids is None:
        sample_ids = hash_samples(ids, layout_of(input_ids, cu_seqlens, attention_mask))
    if cu_seqlens is None:
        bounds = torch.arange(samples + 1, device=ids.device).mul_(input_ids.shape[1])
    else:
        bounds = safe_bounds(cu_seqlens, n)
    if attention_mask is not None:
        keep = attention_mask.reshape(-1) != 0
        before = torch.cat([bounds.new_zeros(1), keep.cumsum(0)])
        slot = torch.where(keep, before[:-1], n)  # one place more takes what is left out
        ids = ids.new_zeros(n + 1).scatter_(0, slot, ids)[:n]
        bounds = before.index_select(0, bounds)
    return _Batch(ids, bounds, sample_ids.contiguous(), samples, seed, epoch << 8)


def _scratch(batch: _Batch, choices: int, places: int) -> _Scratch:
    n, samples = batch.ids.numel(), batch.samples
    return _Scratch(
        batch.bounds.new_empty(samples, 5),
        batch.bounds.new_empty(samples * choices, 4),
        batch.ids.new_empty(n, dtype=torch.int32),
        batch.ids.new_zeros(places, dtype=torch.int8),
        batch.bounds.new_zeros(samples + 1),
    )


def _shuffled(batch: _Batch, plan: Tensor, sentence_end_ids: Sequence[int]) -> Tensor:
    """The ids with the sentences of each row in random order."""
    ids, bounds, sample_ids, samples, seed, epoch_word = batch
    starts, turns, shifts = (ids.new_empty(ids.numel(), dtype=torch.int32) for _ in range(3))
    counts = torch.empty_like(sample_ids)
    ends, out = _list(sentence_end_ids, ids), torch.empty_like(ids)
    _sentences[samples,](
        ids, plan, sample_ids, ends, starts, turns, counts, len(sentence_end_ids), seed,
        epoch_word, BLOCK,
    )  # fmt: skip
    _order[samples,](plan, counts, starts, turns, shifts, STEPS)
    _permute[samples,](ids, bounds, plan, ends, shifts, out, len(sentence_end_ids), BLOCK)
    return out


def _list(numbers: Iterable[int], ids: Tensor) -> Tensor:
    """int64, where ``ids`` is."""
    return numbers_on(ids.device, tuple(numbers))
