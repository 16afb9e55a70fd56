"""Denoising in plain Python, one row at a time. This file is the specification of the kernels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from maskkernels.denoise.job import (
    Batch,
    CorruptedRows,
    DenoiseJob,
    batch_of,
    span_counts,
    too_few_sentinels,
)
from maskkernels.denoise.policy import SpanCorruption, TextInfilling, denoiser_table, poisson_table
from maskkernels.rng import reference as rng
from maskkernels.rng import threshold
from maskkernels.rng.streams import DENOISER, GAP, LENGTH, NOISE, PLACE, SENTENCE

Draw = Callable[[int, int], list[int]]  # the first words of a stream: (stream, how many)


def corrupt_spans(job: DenoiseJob, corruption: SpanCorruption) -> CorruptedRows:
    """Compute ``api.corrupt_spans``."""
    batch = batch_of(job, rng.hash_rows)
    eos = [] if corruption.eos_token_id is None else [corruption.eos_token_id]
    sentinels = list(corruption.sentinel_ids)
    table = denoiser_table(corruption.denoisers).tolist()
    inputs, targets = [], []
    for b, (row, draw) in enumerate(_rows(batch)):
        left, body, right = _take_apart(row, [*corruption.edge_token_ids, *eos])
        word = draw(DENOISER, 1)[0]
        _, density, mean, prefix, mode = next(entry for entry in table if word < entry[0])
        noise, spans = span_counts(len(body), density, mean, prefix)
        if spans + corruption.final_sentinel > len(sentinels):
            needed = spans + corruption.final_sentinel
            raise too_few_sentinels(b, len(row), needed, len(sentinels))
        noise_lengths = _composition(noise, spans, draw, NOISE)
        gap_lengths = _composition(len(body) - noise, spans, draw, GAP)
        seen = [*([mode] if mode >= 0 else []), *left]
        said: list[int] = []
        at = 0
        for gap, length, sentinel in zip(gap_lengths, noise_lengths, sentinels, strict=False):
            seen += [*body[at : at + gap], sentinel]
            said += [sentinel, *body[at + gap : at + gap + length]]
            at += gap + length
        last = [sentinels[spans]] if corruption.final_sentinel else []
        inputs.append([*seen, *body[at:], *right])
        targets.append([*said, *last, *eos])
    return CorruptedRows(*_end_to_end(inputs, batch), *_end_to_end(targets, batch))


def infill_text(job: DenoiseJob, infilling: TextInfilling) -> CorruptedRows:
    """Compute ``api.infill_text``."""
    batch = batch_of(job, rng.hash_rows)
    table = poisson_table(float(infilling.mean_span_length)).tolist()
    inputs = []
    for row, draw in _rows(batch):
        left, body, right = _take_apart(row, infilling.edge_token_ids)
        if infilling.permute_sentences:
            body = _permuted(body, infilling.sentence_end_ids, draw)
        lengths = _span_lengths(len(body), infilling.ratio, table, draw)
        size = len(body) - sum(lengths) + len(lengths)
        masked = _chosen(size, len(lengths), draw(PLACE, len(lengths)))
        seen, at = list(left), 0
        for place in range(size):
            if place in masked:
                seen.append(infilling.mask_token_id)
                at += lengths.pop(0)
            else:
                seen.append(body[at])
                at += 1
        inputs.append([*seen, *right])
    return CorruptedRows(*_end_to_end(inputs, batch), batch.ids, batch.bounds)


def _rows(batch: Batch) -> Iterator[tuple[list[int], Draw]]:
    """Yield each row and a function that draws its random words."""
    sample_ids = batch.sample_ids
    if sample_ids is None:
        sample_ids = rng.hash_rows(batch.ids, batch.bounds, None)
    ids, bounds = batch.ids.tolist(), batch.bounds.tolist()
    for b in range(len(bounds) - 1):
        yield ids[bounds[b] : bounds[b + 1]], partial(_draw, batch, sample_ids[b].cpu())


def _draw(batch: Batch, sample: Tensor, stream: int, count: int) -> list[int]:
    """Draw the first ``count`` words of a stream for one sample."""
    index = torch.arange(count)
    sample = sample.expand(count)
    return rng.random_words(sample, index, batch.seed, batch.epoch, stream).tolist()


def _take_apart(row: list[int], edges: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Split a row into (kept left edge, tokens that may be corrupted, kept right edge)."""
    begin, end = 0, len(row)
    while begin < end and row[begin] in edges:
        begin += 1
    while end > begin and row[end - 1] in edges:
        end -= 1
    return row[:begin], row[begin:end], row[end:]


def _chosen(size: int, count: int, words: list[int]) -> set[int]:
    """Choose ``count`` of the numbers below ``size``, uniformly among all such sets."""
    chosen: set[int] = set()
    for i, word in enumerate(words):
        highest = size - count + i
        number = (word * (highest + 1)) >> 32
        chosen.add(highest if number in chosen else number)
    return chosen


def _composition(total: int, parts: int, draw: Draw, stream: int) -> list[int]:
    """Draw ``parts`` positive numbers that sum to ``total``, uniformly among all such lists.

    Cuts are chosen among the ``total - 1`` places between two tokens.
    """
    if parts == 0:
        return []
    cuts = sorted(_chosen(total - 1, parts - 1, draw(stream, parts - 1)))
    ends = [*(cut + 1 for cut in cuts), total]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _span_lengths(size: int, ratio: float, table: list[int], draw: Draw) -> list[int]:
    """Draw Poisson lengths that sum to the tokens to mask, or ``size`` draws if these sum to less.

    The last draw is cut to fit. The lengths are then rotated, so that it may be in any place.
    """
    if size == 0:
        return []
    budget = min(max((size * threshold(ratio) + (1 << 31)) >> 32, 1), size)
    words = draw(LENGTH, size + 1)
    lengths: list[int] = []
    while sum(lengths) < budget and len(lengths) < size:
        length = sum(word <= words[len(lengths)] for word in table)
        lengths.append(min(length, budget - sum(lengths)))
    first = (words[size] * len(lengths)) >> 32
    return lengths[first:] + lengths[:first]


def _permuted(body: list[int], ends: Sequence[int], draw: Draw) -> list[int]:
    """Shuffle the sentences of a row (Fisher-Yates, from the last place down)."""
    sentences: list[list[int]] = [[]]
    for t, token in enumerate(body):
        sentences[-1].append(token)
        if token in ends and t + 1 < len(body):
            sentences.append([])
    words = draw(SENTENCE, len(sentences))
    for i in range(len(sentences) - 1, 0, -1):
        j = (words[i] * (i + 1)) >> 32
        sentences[i], sentences[j] = sentences[j], sentences[i]
    return [token for sentence in sentences for token in sentence]


def _end_to_end(rows: list[list[int]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Concatenate rows to (values, cu_seqlens), with the dtype and device of the batch."""
    values = torch.tensor([token for row in rows for token in row], dtype=batch.ids.dtype)
    lengths = torch.tensor([0, *map(len, rows)])
    return values.to(batch.ids.device), lengths.cumsum(0).to(batch.ids.device)
