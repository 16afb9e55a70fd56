"""The masking op: check the arguments, choose a backend, compute."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import Op
from maskkernels.mask.job import MaskJob
from maskkernels.mask.policy import MaskingPolicy, outside_vocabulary
from maskkernels.tokens.checks import (
    INTEGERS,
    check_bounds,
    check_dense,
    check_drawn_from,
    check_ids,
    check_indices,
    check_int64,
    check_like,
    check_rates,
    check_vector,
    epoch_bits,
    seed_bits,
)


class MaskedTokens(NamedTuple):
    """A masked batch.

    Attributes:
        input_ids: what the model sees; shape and dtype of the input, contiguous.
        labels: the original id at labelled tokens, ``ignore_index`` elsewhere.
        count: int64 [], the number of labelled tokens, on the device of the input; None unless
            ``capacity`` was given.
        positions: int64 [capacity], indices of the labelled tokens into
            ``input_ids.reshape(-1)``, ascending, then -1; None unless ``capacity`` was given.

    Examples:
        >>> import torch
        >>> from maskkernels import MaskingPolicy, mask_tokens
        >>> ids = torch.arange(1000, 1016).view(2, 8)
        >>> masked = mask_tokens(ids, MaskingPolicy(103, 30522), seed=2, capacity=4)
        >>> masked.count.item(), masked.positions.tolist()
        (1, [3, -1, -1, -1])
    """

    input_ids: Tensor
    labels: Tensor
    count: Tensor | None = None  # type: ignore[assignment]  # in place of tuple.count
    positions: Tensor | None = None


def _fake(job: MaskJob) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, labels = (
        torch.empty_like(job.input_ids, memory_format=torch.contiguous_format) for _ in range(2)
    )
    asked = job.capacity >= 0
    count = job.input_ids.new_empty(() if asked else (0,), dtype=torch.int64)
    positions = job.input_ids.new_empty(job.capacity if asked else 0, dtype=torch.int64)
    return ids, labels, count, positions


def _check(job: MaskJob) -> None:
    """Look at the values before the reference runs on the CPU."""
    check_bounds(job.input_ids, job.cu_seqlens)
    size = job.vocab_size if job.maskable is None else job.maskable.numel()
    check_drawn_from(job.replacement_ids, size)
    check_rates("rates", job.rates)
    outside = (job.input_ids < 0) | (job.input_ids >= size)
    if job.attention_mask is not None:
        outside &= job.attention_mask != 0
    if outside.any():
        raise outside_vocabulary(job.input_ids, int(outside.reshape(-1).long().argmax()), size)


_mask_tokens = Op(
    "mask", "mask_tokens", fake=_fake, job=MaskJob, results=4, check=_check, direct=True
)


def mask_tokens(
    input_ids: Tensor,
    policy: MaskingPolicy,
    *,
    seed: int,
    epoch: int = 0,
    sample_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    replacement_ids: Tensor | None = None,
    units: Tensor | None = None,
    rates: Tensor | None = None,
    unit_rates: Tensor | None = None,
    capacity: int | None = None,
    backend: str = "auto",
) -> MaskedTokens:
    """Mask tokens, or whole units of tokens, as a pure function of (seed, epoch, sample, position).

    The formula for one token, with word r of stream 0 (``random_words``) and
    T(p) = floor(p * 2^32): it is selected iff r < T(rate). A selected token becomes the mask token
    iff r < T(rate * mask_share), else a random id iff r < T(rate * (mask_share + random_share)),
    else it is kept. A higher rate therefore only adds masks. A random id is
    replacement_ids[(w * n) >> 32] for word w of stream 1. ``mask/reference.py`` specifies the rest.

    With selection="budget" exactly k tokens of a sample, or of its units, are selected:
    k = (sum of T(p_u) + 2^31) >> 32 over the eligible u, and at least 1 with ``at_least_one`` if
    any is eligible. The k smallest keys (r_u << 32) // T(p_u) are selected, ties to the lower
    position; in that order the first (k * T(mask_share) + 2^31) >> 32 become the mask token, and so
    on. p_u is policy.rate or the unit's own rate; in the second case T(p_u) = 0 is not eligible.
    With a single rate the keys have the order of the words, and every unit is selected equally
    often. With unequal rates a unit is selected with a probability near p_u but not equal to it:
    sequential Poisson sampling (Ohlsson, "Sequential Poisson sampling", Journal of Official
    Statistics 14, 1998). The budget counts units, not their tokens.

    Args:
        input_ids: [B, T], or flat packed [N] with ``cu_seqlens``; int32 or int64, any strides.
            Never written to.
        policy: rates, shares, ids and the kind of selection.
        seed: in [0, 2^64).
        epoch: non-negative, taken modulo 2^24.
        sample_ids: int64 [B], the identity of each sample. None: ``hash_rows`` of its content.
        cu_seqlens: [B + 1], int32 or int64: sample b is input_ids[cu_seqlens[b]:cu_seqlens[b + 1]].
        attention_mask: like input_ids; non-zero where the token is real. None: all are. Positions
            count from a sample's first real token.
        special_tokens_mask: like input_ids; non-zero where a token must not be masked. Replaces
            ``maskable``.
        maskable: bool [V], whether each id may be masked. None: all may be.
        replacement_ids: int32 or int64 [n], the ids a random replacement is drawn from. None: all
            of [0, policy.vocab_size).
        units: like input_ids, int32 or int64: the unit (word, span...) each token belongs to,
            numbered from 0 in its sample, below 2^34; negative: never masked. Word u of stream 2
            selects unit u.
        rates: like input_ids, float: the rate of each token, instead of policy.rate. With
            ``units``, a token is selected iff its unit's word is below the token's rate; with a
            budget, a unit has the rate of its first token that may be masked.
        unit_rates: float [B, U], with ``units``: the rate of each unit.
        capacity: how many positions to return; 0 returns only the count. None: neither.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU). All give the same bits.

    Returns:
        MaskedTokens(input_ids, labels, count, positions).

    Raises:
        TypeError, ValueError: an argument that does not fit, by name; values (ids outside the
            vocabulary, rates outside [0, 1], a broken cu_seqlens) are checked on the CPU only, in a
            compiled graph when it runs. On a GPU, where looking at them would wait for the device,
            an id outside the table is never masked, a NaN rate counts as 0 and others are clamped
            to [0, 1]. There, and in a graph, a unit without a column in ``unit_rates`` has rate 0,
            and units 2^34 apart share their words.

    Examples:
        >>> import torch
        >>> from maskkernels import MaskingPolicy, mask_tokens
        >>> policy = MaskingPolicy(mask_token_id=103, vocab_size=30522, rate=0.3)
        >>> masked = mask_tokens(torch.arange(1000, 1010).view(2, 5), policy, seed=1)
        >>> masked.input_ids.tolist()
        [[1000, 1001, 1002, 103, 1004], [1005, 103, 1007, 1008, 1009]]
        >>> masked.labels.tolist()
        [[-100, -100, -100, 1003, -100], [-100, 1006, -100, -100, -100]]
    """
    check_ids(input_ids, cu_seqlens, attention_mask)
    if not isinstance(policy, MaskingPolicy):
        raise TypeError(f"policy must be a MaskingPolicy, got {type(policy).__name__}")
    samples = input_ids.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    check_like("special_tokens_mask", special_tokens_mask, input_ids)
    check_vector("sample_ids", sample_ids, input_ids, (torch.int64,), samples)
    check_vector("maskable", maskable, input_ids, (torch.bool,), None)
    check_vector("replacement_ids", replacement_ids, input_ids, INTEGERS, None)
    _check_units(units, rates, unit_rates, input_ids, samples, policy)
    if maskable is not None and maskable.numel() < policy.vocab_size:
        raise ValueError(
            f"maskable must have an entry for each of the {policy.vocab_size} ids "
            f"(policy.vocab_size), got {maskable.numel()}"
        )
    if replacement_ids is not None and not 0 < replacement_ids.numel() < 1 << 31:
        raise ValueError(
            f"replacement_ids must hold 1 to 2**31 - 1 ids, got {replacement_ids.numel()}"
        )
    if capacity is not None:
        check_int64("capacity", capacity, 0, 1 << 31)
    if unit_rates is not None:
        rates = _rates_of_units(unit_rates, units, cu_seqlens)
    job = MaskJob(
        input_ids, sample_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable,
        replacement_ids, units, rates, seed_bits(seed), epoch_bits(epoch),
        int(policy.mask_token_id), int(policy.vocab_size), float(policy.rate),
        float(policy.mask_share), float(policy.random_share), policy.selection == "budget",
        policy.at_least_one, policy.replacement == "unit", int(policy.ignore_index),
        -1 if capacity is None else capacity,
    )  # fmt: skip
    ids, labels, count, positions = _mask_tokens(backend, input_ids.device, job)
    if capacity is None:
        return MaskedTokens(ids, labels)
    return MaskedTokens(ids, labels, count, positions)


def _check_units(
    units: Tensor | None,
    rates: Tensor | None,
    unit_rates: Tensor | None,
    input_ids: Tensor,
    samples: int,
    policy: MaskingPolicy,
) -> None:
    check_like("units", units, input_ids)
    if units is None and policy.replacement == "unit":
        raise ValueError("a policy with replacement='unit' needs units")
    if units is not None and units.dtype not in INTEGERS:
        raise TypeError(f"units must be int32 or int64, got {units.dtype}")
    look = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if look and units is not None:
        check_indices("units", units, -(1 << 63))
    check_like("rates", rates, input_ids)
    for name, given in (("rates", rates), ("unit_rates", unit_rates)):
        if given is None:
            continue
        if not isinstance(given, Tensor) or not given.dtype.is_floating_point:
            got = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{name} must be a float tensor, got {got}")
        check_dense(name, given)
    if unit_rates is None:
        return
    if units is None or rates is not None:
        raise ValueError("unit_rates goes with units and without rates")
    if unit_rates.dim() != 2 or unit_rates.shape[0] != samples or unit_rates.shape[1] == 0:
        raise ValueError(f"unit_rates must be [{samples}, U], got {tuple(unit_rates.shape)}")
    if unit_rates.device != input_ids.device:
        raise ValueError(f"unit_rates is on {unit_rates.device}, input_ids on {input_ids.device}")
    if look:
        check_rates("unit_rates", unit_rates)
        highest = int(units.max()) if units.numel() else -1
        if highest >= unit_rates.shape[1]:
            raise ValueError(
                f"units go up to {highest}, unit_rates has columns for {unit_rates.shape[1]}"
            )


def _rates_of_units(unit_rates: Tensor, units: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Return the rate of each token's unit, shaped like ``units``; 0 for a token without a unit."""
    if units is None:  # _check_units has refused this; the type checker cannot know
        raise ValueError("unit_rates goes with units")
    if not unit_rates.shape[0]:  # bounds that are wrong: the kernel says so
        return torch.zeros_like(units, dtype=unit_rates.dtype)
    inside = (units >= 0) & (units < unit_rates.shape[1])
    column = torch.where(inside, units, 0).long()
    if cu_seqlens is None:
        picked = unit_rates.gather(1, column)
    else:
        token = torch.arange(units.numel(), device=units.device)
        sample = torch.searchsorted(cu_seqlens.long(), token, right=True) - 1
        picked = unit_rates[sample.clamp(0, unit_rates.shape[0] - 1), column]
    return torch.where(inside, picked, torch.zeros_like(picked))
