"""Numbering words in plain torch. This file is the specification of the kernels."""

import torch
from torch import Tensor

from maskkernels.mask.leaders import may_mask
from maskkernels.rng.layout import layout
from maskkernels.units.flags import ENDS, STARTS


def word_units(input_ids, table, cu_seqlens, attention_mask, special_tokens_mask, maskable):
    ids = input_ids.reshape(-1)
    inside = (ids >= 0) & (ids < table.numel())
    flags = torch.where(inside, table[torch.where(inside, ids, 0).long()], 0)
    begins = ((flags & STARTS) != 0) | ((_before(flags) & ENDS) != 0)
    return _number(begins, input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable)


def units_from_offsets(
    input_ids, offset_mapping, cu_seqlens, attention_mask, special_tokens_mask, maskable
):
    begin, end = offset_mapping.reshape(-1, 2).unbind(1)
    begins = begin != _before(end)
    return _number(begins, input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable)


def units_from_word_ids(
    input_ids, word_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable
):
    word = word_ids.reshape(-1)
    begins = word != _before(word)
    return _number(
        begins, input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, word >= 0
    )


def _before(x: Tensor) -> Tensor:
    """What stands before each element of ``x`` [N]; the first has itself before it."""
    return torch.cat([x[:1], x[:-1]])


def _number(
    begins, input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, in_word=None
):
    _, sample, _, real = layout(input_ids, cu_seqlens, attention_mask)
    may = real & may_mask(input_ids.reshape(-1), special_tokens_mask, maskable)
    if in_word is not None:
        may = may & in_word
    goes_on = _before(may) & (sample == _before(sample))
    goes_on[:1] = False
    begins = may & (begins | ~goes_on)
    running = begins.cumsum(0)
    first = torch.where(sample != _before(sample), running - begins.long(), 0)
    first[:1] = 0
    return torch.where(may, running - 1 - torch.cummax(first, 0).values, -1).view(input_ids.shape)
