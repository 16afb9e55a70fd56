"""Span corruption on the GPU: how long each row becomes, then the rows."""

import triton
import triton.language as tl

from maskkernels.denoise._triton_choose import CHOICE, mark
from maskkernels.denoise._triton_rows import FIELDS, VARYING, inner_of, word_at, words_from
from maskkernels.rng.streams import DENOISER, GAP, NOISE

_DENOISER, _NOISE = tl.constexpr(DENOISER), tl.constexpr(NOISE)
_GAP = tl.constexpr(GAP)


@triton.jit(do_not_specialize=VARYING)
def plan_spans(
    ids_ptr, bounds_ptr, sample_ids_ptr, edges_ptr, odds_ptr, plan_ptr, choices_ptr, draws_ptr,
    flags_ptr, lengths_ptr, target_lengths_ptr, edges: tl.int64, denoisers: tl.int64,
    limit: tl.int64, more: tl.int64, seed: tl.int64, epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Noise, spans and lengths of a row, and the draws that cut its noise and its context."""
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    sample = tl.load(sample_ids_ptr + b)
    begin, end = inner_of(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK)
    zero = tl.full([], 0, tl.int64)
    w, chosen = word_at(zero, sample, epoch_word | _DENOISER, seed), zero
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
    plan = plan_ptr + b * FIELDS
    tl.store(plan, begin)
    tl.store(plan + 1, end)
    tl.store(plan + 2, noise)
    tl.store(plan + 3, spans)
    tl.store(plan + 4, mode)
    length = row_end - row_begin - noise + spans + (mode >= 0).to(tl.int64)
    tl.store(lengths_ptr, 0, mask=b == 0)
    tl.store(target_lengths_ptr, 0, mask=b == 0)
    tl.store(lengths_ptr + b + 1, length)
    tl.store(target_lengths_ptr + b + 1, noise + spans + more)
    for which in tl.static_range(2):
        if which == 0:
            cuts, c3, draws, flags = noise - 1, epoch_word | _NOISE, begin, begin
        else:  # without spans, nothing is cut
            cuts = tl.where(some, kept - 1, -1)
            c3, draws, flags = epoch_word | _GAP, begin + spans, begin + noise
        choice = choices_ptr + (2 * b + which) * CHOICE
        tl.store(choice, cuts)
        tl.store(choice + 1, count)
        tl.store(choice + 2, draws)
        tl.store(choice + 3, flags)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            drawn = (words_from(start, sample, c3, seed, BLOCK) * (cuts - count + i + 1)) >> 32
            tl.store(draws_ptr + draws + i, drawn, mask=i < count)
            mark(flags_ptr + flags, drawn, i, i < count)


@triton.jit(do_not_specialize=VARYING)
def write_spans(
    ids_ptr, bounds_ptr, plan_ptr, flags_ptr, until_ptr, sentinels_ptr, begins_ptr,
    target_begins_ptr, inputs_ptr, targets_ptr, eos_token_id: tl.int64,
    FINAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    plan = plan_ptr + b * FIELDS
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
