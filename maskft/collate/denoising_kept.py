"""Corrupt rows around tokens that must stay: special tokens inside rows, and those of a column.

The ops keep special tokens at the ends of rows only. So they are handed the rows without the tokens
that stay, each of the others as its number in the batch, which says afterwards what became of it
and where the tokens that stay belong.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskkernels import (
    CorruptedRows,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    hash_rows,
    infill_text,
)


def kept_inside(ids: Tensor, bounds: Tensor, edges: Tensor, marked: Tensor | None) -> Tensor | None:
    """Find the tokens that stay, bool [N]; None if the ops keep them by themselves.

    Args:
        ids, bounds: rows end to end.
        edges: bool [V], the ids that the ops keep at the ends of rows.
        marked: not 0 where a column says that a token stays.
    """
    kept = edges[ids.clamp(0, edges.numel() - 1).long()] & (ids < edges.numel()) & (ids >= 0)
    by_id = kept
    if marked is not None:
        kept = kept | (marked != 0)
    if not kept.any():
        return None
    if not bool((kept & ~by_id).any()):
        row = np.repeat(np.arange(bounds.numel() - 1), bounds.diff().numpy())
        others = np.flatnonzero(~kept.numpy())
        gaps = (np.diff(others) > 1) & (np.diff(row[others]) == 0)
        if not gaps.any():
            return None
    return kept


def corrupt_around(
    kept: Tensor,
    ids: Tensor,
    cu_seqlens: Tensor,
    attention_mask: Tensor | None,
    corruption: SpanCorruption | TextInfilling,
    seed: int,
    epoch: int,
    sample_ids: Tensor | None,
) -> CorruptedRows:
    """Corrupt what is not ``kept``, with the random words that the whole rows would get.

    A token that stays is behind the token that it followed, or the sentinel or mask in its place;
    those at either end of a row stay there. Where sentences are shuffled it goes with its sentence.
    """
    real = torch.ones_like(kept) if attention_mask is None else attention_mask != 0
    if sample_ids is None:
        sample_ids = hash_rows(ids, cu_seqlens=cu_seqlens, attention_mask=real)
    n = ids.numel()
    where: dict[str, Any] = {
        "cu_seqlens": cu_seqlens, "attention_mask": real & ~kept, "seed": seed, "epoch": epoch,
        "sample_ids": sample_ids,
    }  # fmt: skip
    numbers = torch.arange(n)
    if isinstance(corruption, SpanCorruption):
        spans, others = _spans_by_number(corruption, n)
        found = corrupt_spans(numbers, spans, **where)
    else:
        infilling, others = _infilling_by_number(corruption, ids)
        found = infill_text(numbers, infilling, **where)
    meanings = torch.cat([ids.long(), torch.tensor(others)])
    rows = np.repeat(np.arange(cu_seqlens.numel() - 1), cu_seqlens.diff().numpy())
    stays = np.flatnonzero((real & kept).numpy())
    anchors = _anchors(found, n, rows, (real & ~kept).numpy(), stays, corruption)
    out = found.input_ids.numpy()
    places = np.concatenate([np.arange(out.size), anchors])
    order = np.lexsort((np.concatenate([np.full(out.size, -1), stays]), places))
    inputs = torch.cat([meanings[found.input_ids], ids[stays].long()])[order]
    added = np.bincount(rows[stays], minlength=cu_seqlens.numel() - 1).cumsum()
    begins = found.cu_seqlens + torch.from_numpy(np.concatenate([[0], added]))
    if isinstance(corruption, TextInfilling):  # the targets are the whole rows
        before = torch.cat([torch.zeros(1, dtype=torch.int64), real.long().cumsum(0)])
        return CorruptedRows(inputs, begins, ids[real], before[cu_seqlens])
    return CorruptedRows(inputs, begins, meanings[found.target_ids], found.target_cu_seqlens)


def _spans_by_number(corruption: SpanCorruption, n: int) -> tuple[SpanCorruption, list[int]]:
    """Return the options for numbered tokens, and what the numbers from ``n`` on mean."""
    others = list(corruption.sentinel_ids)
    denoisers = []
    for denoiser in corruption.denoisers:
        if denoiser.mode_token_id is not None:
            others.append(denoiser.mode_token_id)
            denoiser = replace(denoiser, mode_token_id=n + len(others) - 1)
        denoisers.append(denoiser)
    eos = corruption.eos_token_id
    if eos is not None:
        others.append(eos)
        eos = n + len(others) - 1
    sentinels = range(n, n + len(corruption.sentinel_ids))
    return SpanCorruption(sentinels, denoisers, eos, corruption.final_sentinel), others


def _infilling_by_number(infilling: TextInfilling, ids: Tensor) -> tuple[TextInfilling, list[int]]:
    n = ids.numel()
    ends = torch.isin(ids, torch.tensor(infilling.sentence_end_ids, dtype=ids.dtype))
    numbered = [*torch.nonzero(ends).view(-1).tolist(), n + 1]  # one at least
    by_number = replace(infilling, mask_token_id=n, sentence_end_ids=numbered, edge_token_ids=())
    return by_number, [infilling.mask_token_id]


def _anchors(
    found: CorruptedRows,
    n: int,
    rows: np.ndarray,
    free: np.ndarray,
    stays: np.ndarray,
    corruption: SpanCorruption | TextInfilling,
) -> np.ndarray:
    """Find behind which place of the inputs each token that stays belongs."""
    out, begins = found.input_ids.numpy(), found.cu_seqlens.numpy()
    place = np.full(n, -1)
    survivors = out < n
    place[out[survivors]] = np.flatnonzero(survivors)
    front = begins[:-1] - 1
    if isinstance(corruption, SpanCorruption):
        count = len(corruption.sentinel_ids)
        is_sentinel = (out >= n) & (out < n + count)
        modes = (begins[:-1] < begins[1:]) & (np.append(out, n)[begins[:-1]] >= n + count)
        front = front + modes
        said, ends = found.target_ids.numpy(), found.target_cu_seqlens.numpy()
        target_row = np.repeat(np.arange(ends.size - 1), np.diff(ends))
        marks = (said >= n) & (said < n + count)
        # The sentinels of the inputs are those of the targets without the final ones.
        group = marks.cumsum() - 1 - target_row * corruption.final_sentinel
        noise = said < n
        place[said[noise]] = np.flatnonzero(is_sentinel)[group[noise]]
    tokens = np.flatnonzero(free)
    if not tokens.size:
        return front[rows[stays]]
    at = np.searchsorted(tokens, stays)
    before, after = tokens[np.maximum(at - 1, 0)], tokens[np.minimum(at, tokens.size - 1)]
    leads = (at == 0) | (rows[before] != rows[stays])
    trails = (at == tokens.size) | (rows[after] != rows[stays])
    # Behind the token before it; if that is under a mask, in front of the next one that is not.
    seen = tokens[place[tokens] >= 0]
    next_seen = np.append(seen, n)[np.searchsorted(seen, stays)]
    known = (next_seen < n) & (np.append(rows, -1)[next_seen] == rows[stays])
    last = begins[1:][rows[stays]] - 1
    ahead = np.where(known, np.append(place, 0)[next_seen] - 1, last)
    anchors = np.where(place[before] >= 0, place[before], ahead)
    return np.where(leads, front[rows[stays]], np.where(trails, last, anchors))
