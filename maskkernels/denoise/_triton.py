"""Denoising on the GPU: a few kernels, each with one program a row.

The law of ``reference.py``, without its loops over earlier steps. First how long each row becomes
(``plan_*``), then which places are chosen (``choose``), then the rows. A kernel never reads what
another lane of it has written: what it needs comes from an earlier kernel, so nothing depends on
when a store is seen. Choices and shuffles, where a step depends on those before it, are chains of
steps that each lane follows for itself; atomic operations prepare them, in integers alone and with
the same outcome in any order.

No kernel here waits for the host: results have room for whatever the draws may be, and lengths
stay on the device. Only the lists of the options are uploaded, once for each.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import numbers_on
from maskkernels.denoise._triton_choose import choose, part_ends
from maskkernels.denoise._triton_infilling import (
    find_sentences,
    order_sentences,
    permute_sentences,
    plan_infilling,
    write_infilling,
)
from maskkernels.denoise._triton_spans import plan_spans, write_spans
from maskkernels.denoise.job import DenoiseJob, check_longest, spans_capacity
from maskkernels.denoise.policy import SpanCorruption, TextInfilling, denoiser_table, poisson_table
from maskkernels.rng import threshold
from maskkernels.rng._triton import hash_samples
from maskkernels.tokens._triton import layout_of
from maskkernels.tokens.layout import safe_bounds

BLOCK = 512  # tokens or places of a row looked at together
STEPS = 128  # steps of a choice or a shuffle done together


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
    flags: Tensor  # int32, not 0 at chosen places
    lengths: Tensor  # int64 [B + 1], 0 and the length of each row


def corrupt_spans(
    rows: DenoiseJob, corruption: SpanCorruption
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = _batch(rows)
    ids, bounds, sample_ids, samples, seed, epoch_word = batch
    room, target_room = spans_capacity(ids.numel(), samples, corruption)
    inputs, targets = ids.new_zeros(room), ids.new_zeros(target_room)
    if not samples:
        return inputs, bounds.new_zeros(1), targets, bounds.new_zeros(1)
    scratch, target_lengths = _scratch(batch, 2, ids.numel()), bounds.new_empty(samples + 1)
    eos = -1 if corruption.eos_token_id is None else corruption.eos_token_id
    final, table = corruption.final_sentinel, denoiser_table(corruption.denoisers)
    edges = (*corruption.edge_token_ids, *([eos] if eos >= 0 else []))
    plan, choices, draws, flags, lengths = scratch
    plan_spans[samples,](
        ids, bounds, sample_ids, _list(edges, ids), _list(table.reshape(-1).tolist(), ids),
        plan, choices, draws, flags, lengths, target_lengths, len(edges), len(table),
        len(corruption.sentinel_ids) - final, final + (eos >= 0), seed, epoch_word, BLOCK,
    )  # fmt: skip
    begins, target_begins = lengths.cumsum(0), target_lengths.cumsum(0)
    choose[2 * samples,](choices, draws, flags, STEPS)
    part_ends[2 * samples,](choices, flags, draws, BLOCK)
    write_spans[samples,](
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
    if not samples:
        return inputs, bounds.new_zeros(1), ids.clone(), bounds.clone()
    plan, choices, draws, flags, lengths = _scratch(batch, 1, 2 * ids.numel())
    ends = torch.empty_like(draws)
    edges, table = infilling.edge_token_ids, poisson_table(float(infilling.mean_span_length))
    plan_infilling[samples,](
        ids, bounds, sample_ids, _list(edges, ids),
        _list(table.tolist(), ids), plan, choices, draws, flags, ends, lengths,
        len(edges), len(table), threshold(infilling.ratio), seed, epoch_word, BLOCK,
    )  # fmt: skip
    begins = lengths.cumsum(0)
    body = ids
    if infilling.permute_sentences:
        body = _shuffled(batch, plan, infilling.sentence_end_ids)
    choose[samples,](choices, draws, flags, STEPS)
    write_infilling[samples,](
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
        batch.ids.new_zeros(places, dtype=torch.int32),
        batch.bounds.new_empty(samples + 1),
    )


def _shuffled(batch: _Batch, plan: Tensor, sentence_end_ids: Sequence[int]) -> Tensor:
    """The ids with the sentences of each row in random order."""
    ids, bounds, sample_ids, samples, seed, epoch_word = batch
    starts, turns, links, shifts = ids.new_empty(4, ids.numel(), dtype=torch.int32)
    heads = torch.zeros_like(starts)
    counts = torch.empty_like(sample_ids)
    ends, out = _list(sentence_end_ids, ids), torch.empty_like(ids)
    find_sentences[samples,](
        ids, plan, sample_ids, ends, starts, turns, heads, links, counts, len(sentence_end_ids),
        seed, epoch_word, BLOCK,
    )  # fmt: skip
    order_sentences[samples,](plan, counts, starts, turns, heads, links, shifts, STEPS)
    permute_sentences[samples,](ids, bounds, plan, ends, shifts, out, len(sentence_end_ids), BLOCK)
    return out


def _list(numbers: Iterable[int], ids: Tensor) -> Tensor:
    """int64, where ``ids`` is."""
    return numbers_on(ids.device, tuple(numbers))
