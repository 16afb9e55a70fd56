"""A slow second implementation of span corruption and text infilling, and their undoing.

Written from the documentation, not from the library: the tests hold every backend to it. Exact
fractions stand where the library has shifts.
"""

import math
from fractions import Fraction

from tests.support.contract import T, word


def half_up(x):
    return math.floor(x + Fraction(1, 2))


def share(n, p):
    """n * p to the nearest integer, for the p that has a threshold."""
    return half_up(Fraction(n * T(p), 1 << 32))


def choice(m, k, draw):
    """k of range(m), in order."""
    taken = []
    for i in range(k):
        top = m - k + i
        pick = draw(i) * (top + 1) // (1 << 32)
        taken.append(top if pick in taken else pick)
    return sorted(taken)


def apart(row, edges):
    left = next((i for i, token in enumerate(row) if token not in edges), len(row))
    right = next((i for i, token in enumerate(row[left:][::-1]) if token not in edges), 0)
    return row[:left], row[left : len(row) - right], row[len(row) - right :]


def corrupt_row(row, corruption, *, seed, epoch, sample):
    """(inputs, targets)."""

    def draws(stream):
        return lambda i: word(seed, epoch, stream, sample, i)

    eos = [] if corruption.eos_token_id is None else [corruption.eos_token_id]
    left, body, right = apart(row, {*corruption.edge_token_ids, *eos})
    total = sum(d.share for d in corruption.denoisers)
    below, denoiser = 0.0, None
    for candidate in corruption.denoisers:
        below += candidate.share
        if denoiser is None and draws(3)(0) < T(min(below / total, 1.0)):
            denoiser = candidate
    denoiser = denoiser or corruption.denoisers[-1]
    n, noise, spans = len(body), 0, 0
    if n > 1:
        noise = min(max(share(n, denoiser.noise_density), 1), n - 1)
        mean = Fraction(round(denoiser.mean_span_length * 65536), 65536)
        spans = 1 if denoiser.prefix else max(half_up(noise / mean), 1)
        spans = min(spans, noise, n - noise)
    inside = set()  # the tokens of noise
    if spans:
        noise_cuts = [c + 1 for c in choice(noise - 1, spans - 1, draws(4))]
        gap_cuts = [c + 1 for c in choice(n - noise - 1, spans - 1, draws(5))]
        gap, said = [0, *gap_cuts, n - noise], [0, *noise_cuts, noise]
        for i in range(spans):
            inside |= set(range(gap[i + 1] + said[i], gap[i + 1] + said[i + 1]))
    inputs = [] if denoiser.mode_token_id is None else [denoiser.mode_token_id]
    inputs, targets, used = inputs + left, [], 0
    for t, token in enumerate(body):
        if t in inside:
            if t - 1 not in inside:
                inputs.append(corruption.sentinel_ids[used])
                targets.append(corruption.sentinel_ids[used])
                used += 1
            targets.append(token)
        else:
            inputs.append(token)
    if corruption.final_sentinel:
        targets.append(corruption.sentinel_ids[used])
    return inputs + right, targets + eos


def infill_row(row, infilling, *, seed, epoch, sample):
    """(inputs, [the tokens behind each mask])."""

    def draws(stream):
        return lambda i: word(seed, epoch, stream, sample, i)

    left, body, right = apart(row, set(infilling.edge_token_ids))
    if infilling.permute_sentences:
        body = shuffled(body, infilling.sentence_end_ids, draws(8))
    n, lengths = len(body), []
    budget = min(max(share(n, infilling.ratio), 1), n)
    while sum(lengths) < budget and len(lengths) < n:
        w, k, p = draws(6)(len(lengths)), 0, math.exp(-infilling.mean_span_length)
        total = p
        while w >= T(min(total, 1.0)):
            k += 1
            p *= infilling.mean_span_length / k
            total += p
        lengths.append(min(k, budget - sum(lengths)))
    turn = draws(6)(n) * len(lengths) // (1 << 32) if lengths else 0
    lengths = lengths[turn:] + lengths[:turn]
    size = n - sum(lengths) + len(lengths)
    masks = choice(size, len(lengths), draws(7))
    inputs, hidden, rest = [], [], list(body)
    for place in range(size):
        if place in masks:
            length = lengths[len(hidden)]
            hidden.append(rest[:length])
            del rest[:length]
            inputs.append(infilling.mask_token_id)
        else:
            inputs.append(rest.pop(0))
    return left + inputs + right, hidden


def sentences(body, ends):
    found, begin = [], 0
    for t, token in enumerate(body):
        if token in ends or t == len(body) - 1:
            found.append(body[begin : t + 1])
            begin = t + 1
    return found


def shuffled(body, ends, draw):
    parts = sentences(body, ends)
    for i in reversed(range(1, len(parts))):
        j = draw(i) * (i + 1) // (1 << 32)
        parts[i], parts[j] = parts[j], parts[i]
    return [token for part in parts for token in part]


def restore(inputs, targets, corruption):
    """The row that inputs and targets came from, by their sentinels alone."""
    modes = {d.mode_token_id for d in corruption.denoisers} - {None}
    if inputs and inputs[0] in modes:
        inputs = inputs[1:]
    if corruption.eos_token_id is not None:
        assert targets[-1] == corruption.eos_token_id
        targets = targets[:-1]
    spans, last = {}, None
    for token in targets:
        if token in corruption.sentinel_ids:
            spans[token], last = [], token
        else:
            spans[last].append(token)
    if corruption.final_sentinel:
        assert spans.pop(last) == []
    assert list(spans) == list(corruption.sentinel_ids[: len(spans)])
    row = []
    for token in inputs:
        row += spans.pop(token) if token in corruption.sentinel_ids else [token]
    assert not spans
    return row
