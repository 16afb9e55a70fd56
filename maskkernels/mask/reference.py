"""Masking in plain torch. This file is the specification of every masking kernel."""

import torch
from torch import Tensor

from maskkernels.mask.job import Job
from maskkernels.mask.leaders import leaders, may_mask
from maskkernels.mask.policy import thresholds
from maskkernels.rng import reference as rng
from maskkernels.rng.layout import layout

DECISION, REPLACEMENT, UNIT = 0, 1, 2  # streams of the random contract
NEVER = 1 << 32  # above every word
NONE, MASK, RANDOM, KEEP = 0, 1, 2, 3  # what happens to a token


def mask_tokens(job: Job) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input_ids, labels, count, positions); see ``api.mask_tokens`` for what each field means."""
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
    pick = select  # one word both selects a token and picks what stands in its place
    shares: tuple[int | Tensor, ...] = thresholds(1.0, job.mask_share, job.random_share)
    if unit is not None:
        pick = word(DECISION, unit if job.per_unit else position)
    if job.budget:
        rank, eligible_count = rank_within(sample, samples, select, position, unit, eligible)
        k = (eligible_count * thresholds(job.rate, 1.0, 0.0)[0] + (1 << 31)) >> 32
        if job.at_least_one:
            k = torch.maximum(k, eligible_count.clamp(max=1))
        selected = eligible & (rank < k[sample])
        if unit is None or job.per_unit:
            pick = rank
            shares = tuple(((k * share + (1 << 31)) >> 32)[sample] for share in shares)
    elif job.rates is None:
        selected = eligible & (select < thresholds(job.rate, 1.0, 0.0)[0])
        if unit is None:
            shares = thresholds(job.rate, job.mask_share, job.random_share)
    else:
        p = job.rates.reshape(-1).double().nan_to_num(0.0).clamp(0.0, 1.0)
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
    """floor(p * 2^32) of float64 probabilities, as int64."""
    return (p * 4294967296.0).floor().long()


def rank_within(
    sample: Tensor,
    samples: int,
    select: Tensor,
    position: Tensor,
    unit: Tensor | None,
    eligible: Tensor,
) -> tuple[Tensor, Tensor]:
    """(rank [N], eligible count [samples + 1]) of tokens, or of units through their leaders.

    Rank 0 has the smallest word of its sample; ties go to the lower position. All tokens of a unit
    share its rank.
    """
    leader = leaders(sample, position, unit, eligible)
    leads = eligible & (leader == position)
    order = torch.argsort(torch.where(leads, select, NEVER), stable=True)
    order = order[torch.argsort(sample[order], stable=True)]
    size = torch.zeros(samples + 1, dtype=torch.int64, device=sample.device)
    begin = size.scatter_add(0, sample, torch.ones_like(sample)).cumsum(0).roll(1)
    begin[0] = 0
    place = torch.arange(sample.numel(), device=sample.device)
    rank = torch.empty_like(sample).scatter_(0, order, place - begin[sample[order]])
    if unit is not None:  # the tokens of a sample are contiguous: find each leader's flat index
        at = torch.where(eligible, place - position + leader, place)
        rank = rank[at]
    return rank, size.scatter_add(0, sample, leads.long())


def predicted(selected: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """(count [], positions [capacity]): how many tokens are selected, and the flat index of each.

    Positions ascend and end in -1; past the capacity they are dropped, while the count is whole.
    """
    if capacity < 0:
        return selected.new_empty(0, dtype=torch.int64), selected.new_empty(0, dtype=torch.int64)
    before = selected.long().cumsum(0)
    slot = torch.where(selected & (before <= capacity), before - 1, capacity)
    positions = torch.full((capacity + 1,), -1, dtype=torch.int64, device=selected.device)
    flat = torch.arange(selected.numel(), device=selected.device)
    positions = positions.scatter_(0, slot, torch.where(slot < capacity, flat, -1))
    return selected.sum(), positions[:capacity].clone()
