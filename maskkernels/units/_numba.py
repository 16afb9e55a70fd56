"""Numbering words on the CPU: one pass over the tokens, one write."""

import numpy as np
import torch
from torch import Tensor

from maskkernels.jit import inlined, kernel
from maskkernels.rng._numba import flat, flat_masks, row_bounds
from maskkernels.threads import over_rows
from maskkernels.units.flags import ENDS, STARTS

BLOCK = 1024  # tokens looked at together


@inlined
def _look_up(ids, table, found):
    """found[i] = table[ids[i]], 0 outside it."""
    for i in range(ids.size):
        token = np.uint64(ids[i])  # a negative id is a huge one
        inside = token < np.uint64(table.size)
        entry = table[token if inside else np.uint64(0)]
        found[i] = entry if inside else np.uint8(0)


@inlined
def _may_mask(ids, real, special, maskable, may):
    """may[i] = 1 where token i of a block may be masked; a loop for each reason, to vectorise."""
    if special.size:
        for i in range(ids.size):
            may[i] = special[i] == 0
    elif maskable.size:
        _look_up(ids, maskable, may)
    else:
        may[: ids.size] = 1
    if real.size:
        for i in range(ids.size):
            may[i] &= real[i] != 0


@inlined
def _part(array, begin, end):
    """A block of an array that may be absent."""
    return array[begin:end] if array.size else array


@kernel
def _number_rows(
    ids, bounds, real, special, maskable, table, offsets, word_ids, units, first_row, last_row
):
    """Of ``table`` [V], ``offsets`` [2 N] and ``word_ids`` [N] two are empty."""
    may = np.zeros(BLOCK + 1, np.uint8)  # the token before a block stands at 0
    flags = np.zeros(BLOCK + 1, np.uint8)
    starts = np.empty(BLOCK, np.uint8)
    for b in range(first_row, last_row):
        number = np.int64(-1)
        may[0], flags[0] = 0, 0
        for begin in range(bounds[b], bounds[b + 1], BLOCK):
            end = min(begin + BLOCK, bounds[b + 1])
            size, block = end - begin, ids[begin:end]
            _may_mask(block, _part(real, begin, end), _part(special, begin, end), maskable, may[1:])
            if table.size:
                _look_up(block, table, flags[1:])
                for i in range(size):
                    starts[i] = ((flags[i + 1] & STARTS) | (flags[i] & ENDS)) != 0
            elif offsets.size:
                for i in range(size):  # the first of a row has a number of its own anyway
                    t = begin + i
                    starts[i] = offsets[2 * t] != offsets[max(2 * t - 1, 0)]
            else:
                for i in range(size):
                    word = word_ids[begin + i]
                    may[i + 1] &= word >= 0
                    starts[i] = word != word_ids[max(begin + i - 1, 0)]
            out = units[begin:end]
            for i in range(size):  # three loops: the one that goes step by step has to be short
                starts[i] = may[i + 1] & (starts[i] | (may[i] ^ 1))
            for i in range(size):
                number += np.int64(starts[i])
                out[i] = number
            for i in range(size):
                out[i] = out[i] if may[i + 1] else -1
            may[0], flags[0] = may[size], flags[size]


def _number(name: str, which: Tensor, input_ids: Tensor, cu_seqlens: Tensor | None, *beside):
    attention_mask, special_tokens_mask, maskable = beside
    units = torch.empty(input_ids.shape, dtype=torch.int64)
    bounds = row_bounds(input_ids, cu_seqlens)
    arrays = (
        flat(input_ids, input_ids.dtype),
        bounds,
        *flat_masks(attention_mask, special_tokens_mask),
        flat(maskable, torch.bool).view(np.uint8),
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
