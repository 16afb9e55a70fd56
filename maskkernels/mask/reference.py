"""Masking in plain torch. This file is the specification of every masking kernel."""

import torch
from torch import Tensor

from maskkernels.mask.actions import KEEP, MASK, NONE, RANDOM
from maskkernels.mask.job import MaskJob
from maskkernels.mask.leaders import flat_leaders, leaders
from maskkernels.mask.policy import thresholds
from maskkernels.rng import reference as rng
from maskkernels.rng.streams import DECISION, REPLACEMENT, UNIT
from maskkernels.tokens.eligibility import may_mask
from maskkernels.tokens.layout import layout

NEVER = (1 << 63) - 1  # above every key


def mask_tokens(job: MaskJob) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (input_ids, labels, count, positions) as ``api.mask_tokens`` defines them."""
    sample_ids = job.sample_ids
    if sample_ids is None:
        sample_ids = rng.hash_rows(job.input_ids, job.cu_seqlens, job.attention_mask)
    samples, sample, position, real = layout(job.input_ids, job.cu_seqlens, job.attention_mask)
    ids = job.input_ids.reshape(-1)
    eligible = real & may_mask(ids, job.special_tokens_mask, job.maskable)
    unit = None if job.units is None else job.units.reshape(-1).long()
    if unit is not None:
        eligible = eligible & (unit >= 0)
    key = torch.cat([sample_ids, sample_ids.new_zeros(1)])[sample]

    def word(stream: int, index: Tensor) -> Tensor:
        return rng.random_words(key, index.clamp(0), job.seed, job.epoch, stream)

    select = word(DECISION, position) if unit is None else word(UNIT, unit)
    pick = select  # one word both selects a token and picks its replacement
    shares: tuple[int | Tensor, ...] = thresholds(1.0, job.mask_share, job.random_share)
    if unit is not None:
        pick = word(DECISION, unit if job.per_unit else position)
    p = None
    if job.rates is not None:
        p = job.rates.reshape(-1).double().nan_to_num(0.0).clamp(0.0, 1.0)
    if job.budget:
        leader = leaders(sample, position, unit, eligible)
        at = flat_leaders(position, leader, eligible)
        order, threshold = select, torch.full_like(select, thresholds(job.rate, 1.0, 0.0)[0])
        if p is not None:  # a unit has the rate of its leader
            threshold = threshold_of(p)[at]
            eligible = eligible & (threshold > 0)
            order = sequential_key(select, threshold)
        leads = eligible & (leader == position)
        rank = rank_within(sample, samples, order, leads)[at]
        k = budget_of(sample, samples, threshold, leads, job.at_least_one)
        selected = eligible & (rank < k[sample])
        if unit is None or job.per_unit:
            pick = rank
            shares = tuple(((k * share + (1 << 31)) >> 32)[sample] for share in shares)
    elif p is None:
        selected = eligible & (select < thresholds(job.rate, 1.0, 0.0)[0])
        if unit is None:
            shares = thresholds(job.rate, job.mask_share, job.random_share)
    else:
        selected = eligible & (select < threshold_of(p))
        if unit is None:
            mixed = min(job.mask_share + job.random_share, 1.0)
            shares = (threshold_of(p), threshold_of(p * job.mask_share), threshold_of(p * mixed))
    action = torch.where(pick < shares[1], MASK, torch.where(pick < shares[2], RANDOM, KEEP))
    action = torch.where(selected, action, NONE)

    new = word(REPLACEMENT, position)
    if job.replacement_ids is None:
        new = (new * job.vocab_size) >> 32
    else:
        new = job.replacement_ids.long()[(new * job.replacement_ids.numel()) >> 32]
    masked = torch.where(action == MASK, job.mask_token_id, torch.where(action == RANDOM, new, ids))
    labels = torch.where(action == NONE, job.ignore_index, ids)
    count, positions = predicted(action != NONE, job.capacity)
    shape, dtype = job.input_ids.shape, job.input_ids.dtype
    return masked.to(dtype).view(shape), labels.to(dtype).view(shape), count, positions


def threshold_of(p: Tensor) -> Tensor:
    """Return floor(p * 2^32) of float64 probabilities, as int64."""
    return (p * 4294967296.0).floor().long()


def sequential_key(word: Tensor, threshold: Tensor) -> Tensor:
    """Return (word << 32) // threshold - 2^63 as int64, for word < 2^32 and threshold <= 2^32.

    The quotient needs 64 unsigned bits; subtracting 2^63 keeps its order in int64. The low half is
    divided 16 bits at a time, so that no intermediate value exceeds 2^48. Undefined where
    ``threshold`` is 0.
    """
    threshold = threshold.clamp(min=1)
    high, rest = word // threshold, word % threshold
    middle, rest = (rest << 16) // threshold, (rest << 16) % threshold
    return ((high - (1 << 31)) << 32) | (middle << 16) | ((rest << 16) // threshold)


def budget_of(
    sample: Tensor, samples: int, threshold: Tensor, leads: Tensor, at_least_one: bool
) -> Tensor:
    """Return k, the rounded sum of the thresholds of each sample's units; int64 [samples + 1]."""
    zero = torch.zeros(samples + 1, dtype=torch.int64, device=sample.device)
    k = (zero.scatter_add(0, sample, torch.where(leads, threshold, 0)) + (1 << 31)) >> 32
    if at_least_one:
        k = torch.maximum(k, zero.scatter_add(0, sample, leads.long()).clamp(max=1))
    return k


def rank_within(sample: Tensor, samples: int, order: Tensor, leads: Tensor) -> Tensor:
    """Return the rank of each leading token in its sample, int64 [N]; undefined for other tokens.

    Rank 0 has the smallest ``order``; ties go to the lower position.
    """
    by_order = torch.argsort(torch.where(leads, order, NEVER), stable=True)
    by_order = by_order[torch.argsort(sample[by_order], stable=True)]
    size = torch.zeros(samples + 1, dtype=torch.int64, device=sample.device)
    begin = size.scatter_add(0, sample, torch.ones_like(sample)).cumsum(0).roll(1)
    begin[0] = 0
    place = torch.arange(sample.numel(), device=sample.device)
    return torch.empty_like(sample).scatter_(0, by_order, place - begin[sample[by_order]])


def predicted(selected: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Return (count [], positions [capacity]) of the selected tokens, as flat indices.

    Positions ascend and end in -1. Positions past the capacity are dropped; the count includes
    them.
    """
    if capacity < 0:
        return selected.new_empty(0, dtype=torch.int64), selected.new_empty(0, dtype=torch.int64)
    before = selected.long().cumsum(0)
    slot = torch.where(selected & (before <= capacity), before - 1, capacity)
    positions = torch.full((capacity + 1,), -1, dtype=torch.int64, device=selected.device)
    flat = torch.arange(selected.numel(), device=selected.device)
    positions = positions.scatter_(0, slot, torch.where(slot < capacity, flat, -1))
    return selected.sum(), positions[:capacity].clone()
