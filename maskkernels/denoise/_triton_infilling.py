"""Text infilling on the GPU: how long each row becomes, its sentences in order, then the rows."""

import triton
import triton.language as tl

from maskkernels.denoise._triton_choose import CHOICE, mark
from maskkernels.denoise._triton_rows import FIELDS, VARYING, among, inner_of, word_at, words_from
from maskkernels.rng.streams import LENGTH, PLACE, SENTENCE

_LENGTH, _PLACE = tl.constexpr(LENGTH), tl.constexpr(PLACE)
_SENTENCE = tl.constexpr(SENTENCE)


@triton.jit(do_not_specialize=VARYING)
def plan_infilling(
    ids_ptr, bounds_ptr, sample_ids_ptr, edges_ptr, odds_ptr, plan_ptr, choices_ptr, draws_ptr,
    flags_ptr, until_ptr, lengths_ptr, edges: tl.int64, entries: tl.int64, ratio: tl.int64,
    seed: tl.int64, epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spans and length of a row, what its spans take one after the other, and where masks are.

    until[begin + i] is what the first i + 1 spans take, in the order of their draws.
    """
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    sample = tl.load(sample_ids_ptr + b)
    begin, end = inner_of(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK)
    size = end - begin
    budget = tl.minimum(tl.maximum((size * ratio + (1 << 31)) >> 32, 1), size)
    zero = tl.full([], 0, tl.int64)
    spans, taken, start = zero, zero, zero
    while (taken < budget) & (start < size):
        i = start + tl.arange(0, BLOCK)
        w = words_from(start, sample, epoch_word | _LENGTH, seed, BLOCK)
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
    plan = plan_ptr + b * FIELDS
    tl.store(plan, begin)
    tl.store(plan + 1, end)
    tl.store(plan + 2, taken)
    tl.store(plan + 3, spans)
    tl.store(plan + 4, (word_at(size, sample, epoch_word | _LENGTH, seed) * spans) >> 32)
    tl.store(lengths_ptr, 0, mask=b == 0)
    tl.store(lengths_ptr + b + 1, row_end - row_begin - taken + spans)
    choice = choices_ptr + b * CHOICE
    tl.store(choice, places)
    tl.store(choice + 1, spans)
    tl.store(choice + 2, begin)
    tl.store(choice + 3, 2 * begin)
    for start in range(0, spans, BLOCK):
        i = start + tl.arange(0, BLOCK)
        w = words_from(start, sample, epoch_word | _PLACE, seed, BLOCK)
        drawn = (w * (places - spans + i + 1)) >> 32
        tl.store(draws_ptr + begin + i, drawn, mask=i < spans)
        mark(flags_ptr + 2 * begin, drawn, i, i < spans)


@triton.jit(do_not_specialize=VARYING)
def write_infilling(
    ids_ptr, bounds_ptr, plan_ptr, flags_ptr, until_ptr, begins_ptr, inputs_ptr,
    mask_token_id: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    row_begin = tl.load(bounds_ptr + b)
    plan = plan_ptr + b * FIELDS
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
        mask = (tl.load(flags_ptr + 2 * begin + place, mask=inside, other=0) != 0).to(tl.int32)
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
    return (ok & ((offs == begin) | among(ids, list_ptr, ends))).to(tl.int32)


@triton.jit(do_not_specialize=VARYING)
def find_sentences(
    ids_ptr, plan_ptr, sample_ids_ptr, list_ptr, starts_ptr, turns_ptr, heads_ptr, links_ptr,
    sentences_ptr, ends: tl.int64, seed: tl.int64, epoch_word: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many sentences a row has, where they start, and what each changes places with.

    Those that change with place t are a chain from heads[t] over links, each as 1 + its number, in
    whatever order they came.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(plan_ptr + b * FIELDS), tl.load(plan_ptr + b * FIELDS + 1)
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
        w = words_from(start, sample, epoch_word | _SENTENCE, seed, BLOCK)
        turn = (w * (i + 1)) >> 32
        tl.store(turns_ptr + begin + i, turn, mask=i < count)
        link = tl.atomic_xchg(heads_ptr + begin + turn, (i + 1).to(tl.int32), mask=i < count)
        tl.store(links_ptr + begin + i, link, mask=i < count)


@triton.jit
def order_sentences(
    plan_ptr, sentences_ptr, starts_ptr, turns_ptr, heads_ptr, links_ptr, shifts_ptr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How far each sentence of a row moves.

    A Fisher-Yates shuffle from the last place down: step k exchanges places k and turns[k]. What
    is at place i in the end was at turns[i] before step i; going up from there, it came from place
    k if step k, the next one with that turn, exchanged it. A turn has few steps, and few lie on
    the way: the logarithm of the sentences' number is to be expected of both.
    """
    b = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(plan_ptr + b * FIELDS), tl.load(plan_ptr + b * FIELDS + 1)
    count = tl.load(sentences_ptr + b)
    starts, turns, heads, links = (
        starts_ptr + begin, turns_ptr + begin, heads_ptr + begin, links_ptr + begin
    )  # fmt: skip
    filled = tl.full([], 0, tl.int64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ok = i < count
        sentence = tl.load(turns + i, mask=ok, other=-1).to(tl.int64)
        step, going = i, ok
        while tl.max(going.to(tl.int32), 0) > 0:
            following = tl.zeros_like(i) + count
            link = tl.load(heads + sentence, mask=going, other=0).to(tl.int64)
            while tl.max(link, 0) > 0:
                later = (link > 0) & (link - 1 > step)
                following = tl.where(later, tl.minimum(following, link - 1), following)
                link = tl.load(links + link - 1, mask=link > 0, other=0).to(tl.int64)
            going = going & (following < count)
            sentence = tl.where(going, following, sentence)
            step = tl.where(going, following, step)
        opens = tl.load(starts + sentence, mask=ok, other=0).to(tl.int64)
        inner = ok & (sentence + 1 < count)
        closes = tl.load(starts + sentence + 1, mask=inner, other=0).to(tl.int64)
        length = tl.where(ok, tl.where(inner, closes, end - begin) - opens, 0)
        to = filled + tl.cumsum(length, 0) - length
        tl.store(shifts_ptr + begin + sentence, to - opens, mask=ok)
        filled += tl.sum(length, 0)


@triton.jit(do_not_specialize=VARYING)
def permute_sentences(
    ids_ptr, bounds_ptr, plan_ptr, list_ptr, shifts_ptr, out_ptr, ends: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The tokens of a row with its sentences where they belong."""
    b = tl.program_id(0).to(tl.int64)
    row_begin, row_end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    begin, end = tl.load(plan_ptr + b * FIELDS), tl.load(plan_ptr + b * FIELDS + 1)
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
