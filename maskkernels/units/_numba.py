"""Numbering words on the CPU: one pass over the tokens, one write."""

import numpy as np
import torch
from torch import Tensor

from maskkernels.jit import kernel
from maskkernels.rng._numba import flat, flat_masks, row_bounds
from maskkernels.threads import over_rows
from maskkernels.units.flags import ENDS, STARTS


@kernel
def _number_rows(
    ids, bounds, real, special, maskable, table, offsets, word_ids, units, first_row, last_row
):
    """Of ``table`` [V], ``offsets`` [2 N] and ``word_ids`` [N] two are empty."""
    size, words = np.uint64(maskable.size), np.uint64(table.size)
    for b in range(first_row, last_row):
        number, goes_on, before = -1, False, np.int64(0)
        for t in range(bounds[b], bounds[b + 1]):
            token = np.uint64(ids[t])  # a negative id is a huge one
            ok = True
            if real.size:
                ok = real[t] != 0
            if special.size:
                ok = ok and not special[t]
            elif size:
                ok = ok and token < size and maskable[token]
            if table.size:
                now = np.int64(table[token]) if token < words else 0
                begins = (now & STARTS) != 0 or (before & ENDS) != 0
                before = now
            elif offsets.size:
                begins = offsets[2 * t] != before
                before = offsets[2 * t + 1]
            else:
                now = word_ids[t]
                ok = ok and now >= 0
                begins = now != before
                before = now
            number += ok and (begins or not goes_on)
            units[t] = number if ok else -1
            goes_on = ok


def _number(name: str, which: Tensor, input_ids: Tensor, cu_seqlens: Tensor | None, *beside):
    attention_mask, special_tokens_mask, maskable = beside
    units = torch.empty(input_ids.shape, dtype=torch.int64)
    bounds = row_bounds(input_ids, cu_seqlens)
    arrays = (
        flat(input_ids, input_ids.dtype),
        bounds,
        *flat_masks(attention_mask, special_tokens_mask),
        flat(maskable, torch.bool),
        flat(which if name == "table" else None, torch.uint8),
        flat(which if name == "offsets" else None, torch.int64),
        flat(which if name == "word_ids" else None, torch.int64),
        units.numpy().reshape(-1),
    )
    over_rows(lambda begin, end: _number_rows(*arrays, begin, end), bounds)
    return units


def word_units(input_ids: Tensor, table: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("table", table, input_ids, *beside)


def units_from_offsets(input_ids: Tensor, offsets: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("offsets", offsets, input_ids, *beside)


def units_from_word_ids(input_ids: Tensor, word_ids: Tensor, *beside: Tensor | None) -> Tensor:
    return _number("word_ids", word_ids, input_ids, *beside)
