"""Masking on the GPU. Three kernels: keys and limits for an exact budget, then the masks.

No kernel here waits for the host, and no address depends on unchecked data: a token outside every
sample, or with an id outside the table, is copied and never masked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.mask import reference
from maskkernels.mask.job import Job
from maskkernels.mask.policy import thresholds
from maskkernels.rng._triton import as_bytes, first_real, hash_rows, row_bounds, word

BLOCK = 512
_NO_KEY = tl.constexpr((1 << 63) - 1)


@triton.jit
def _place(offs, ok, sample_ptr, sample_ids_ptr, first_ptr, length, samples, PACKED: tl.constexpr):
    """(sample number inside the batch or 0, inside, sample id, position) of flat tokens."""
    if PACKED:
        b = tl.load(sample_ptr + offs, mask=ok, other=0).to(tl.int64)
    else:
        b = offs // length
    inside = ok & (b >= 0) & (b < samples)
    b = tl.where(inside, b, 0)
    sample = tl.load(sample_ids_ptr + b, mask=inside, other=0)
    first = tl.load(first_ptr + b, mask=inside, other=0)
    return b, inside, sample, tl.maximum(offs - first, 0)


@triton.jit
def _may_mask(
    offs, inside, ids, unit, real_ptr, special_ptr, table_ptr, size,
    HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr, HAS_TABLE: tl.constexpr,
    HAS_UNITS: tl.constexpr,
):  # fmt: skip
    eligible = inside
    if HAS_REAL:
        eligible = eligible & (tl.load(real_ptr + offs, mask=inside, other=0) != 0)
    if HAS_SPECIAL:
        eligible = eligible & (tl.load(special_ptr + offs, mask=inside, other=1) == 0)
    elif HAS_TABLE:
        in_table = inside & (ids >= 0) & (ids < size)
        entry = tl.load(table_ptr + tl.where(in_table, ids, 0), mask=in_table, other=0)
        eligible = eligible & (entry != 0)
    if HAS_UNITS:
        eligible = eligible & (unit >= 0)
    return eligible


@triton.jit
def _keys(
    ids_ptr, sample_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr, units_ptr,
    leaders_ptr, keys_ptr, n: tl.int64, length: tl.int64, samples: tl.int64, size: tl.int64,
    seed: tl.int64, epoch_word: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [N]: word << 31 | leading position of each eligible token, the largest value elsewhere.

    Sorted by it, the tokens of a sample stand in the order in which a budget takes them.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = offs < n
    _, inside, sample, position = _place(
        offs, ok, sample_ptr, sample_ids_ptr, first_ptr, length, samples, PACKED
    )
    ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
    unit = ids
    if HAS_UNITS:
        unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
    eligible = _may_mask(
        offs, inside, ids, unit, real_ptr, special_ptr, table_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    leader = position
    if HAS_UNITS:
        w = word(tl.maximum(unit, 0), sample, epoch_word | 2, seed)
        leader = tl.load(leaders_ptr + offs, mask=ok, other=0)
    else:
        w = word(position, sample, epoch_word, seed)
    key = (w.to(tl.int64) << 31) | leader
    tl.store(keys_ptr + offs, tl.where(eligible, key, _NO_KEY), mask=ok)


@triton.jit
def _smallest(keys_ptr, first, begin, end, k, HAS_UNITS: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th smallest key of a sample's leaders, by bisection on its 63 bits; -1 for k = 0."""
    low = tl.full([], 0, tl.int64)
    high = tl.full([], _NO_KEY - 1, tl.int64)
    for _ in range(63):
        middle = low + ((high - low) >> 1)
        seen = _count(keys_ptr, first, begin, end, middle, HAS_UNITS, BLOCK)
        enough = seen >= k
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, tl.minimum(middle + 1, high))
    return tl.where(k > 0, high, -1)


@triton.jit
def _count(keys_ptr, first, begin, end, limit, HAS_UNITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many leaders of a sample have a key of at most ``limit``."""
    total = tl.zeros([BLOCK], dtype=tl.int64)
    for start in range(begin, end, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        ok = offs < end
        key = tl.load(keys_ptr + offs, mask=ok, other=_NO_KEY)
        counts = ok & (key <= limit) & (key != _NO_KEY)
        if HAS_UNITS:
            counts = counts & ((key & 0x7FFFFFFF) == offs - first)
        total += counts.to(tl.int64)
    return tl.sum(total, 0)


@triton.jit
def _limits(
    keys_ptr, first_ptr, bounds_ptr, limits_ptr, select: tl.int64, mask_share: tl.int64,
    random_share: tl.int64, AT_LEAST_ONE: tl.constexpr, HAS_UNITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """int64 [B, 3]: the largest key selected, made the mask token, made mask token or random."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
    first = tl.load(first_ptr + b)
    eligible = _count(keys_ptr, first, begin, end, _NO_KEY, HAS_UNITS, BLOCK)
    k = (eligible * select + (1 << 31)) >> 32
    if AT_LEAST_ONE:
        k = tl.maximum(k, tl.minimum(eligible, 1))
    k_mask = (k * mask_share + (1 << 31)) >> 32
    k_random = (k * random_share + (1 << 31)) >> 32
    out = limits_ptr + b * 3
    tl.store(out, _smallest(keys_ptr, first, begin, end, k, HAS_UNITS, BLOCK))
    tl.store(out + 1, _smallest(keys_ptr, first, begin, end, k_mask, HAS_UNITS, BLOCK))
    tl.store(out + 2, _smallest(keys_ptr, first, begin, end, k_random, HAS_UNITS, BLOCK))


@triton.jit
def _mask_tokens(
    ids_ptr, sample_ptr, sample_ids_ptr, first_ptr, real_ptr, special_ptr, table_ptr,
    replacement_ptr, units_ptr, thresholds_ptr, keys_ptr, limits_ptr, out_ptr, labels_ptr,
    n: tl.int64, length: tl.int64, samples: tl.int64, size: tl.int64, replacements: tl.int64,
    seed: tl.int64, epoch_word: tl.int64, mask_token_id: tl.int64, ignore_index: tl.int64,
    select: tl.int64, mask_below: tl.int64, random_below: tl.int64,
    PACKED: tl.constexpr, HAS_REAL: tl.constexpr, HAS_SPECIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_REPLACEMENT: tl.constexpr, HAS_UNITS: tl.constexpr,
    HAS_RATES: tl.constexpr, BUDGET: tl.constexpr, PER_UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = offs < n
    b, inside, sample, position = _place(
        offs, ok, sample_ptr, sample_ids_ptr, first_ptr, length, samples, PACKED
    )
    ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
    unit = ids
    if HAS_UNITS:
        unit = tl.load(units_ptr + offs, mask=ok, other=-1).to(tl.int64)
    eligible = _may_mask(
        offs, inside, ids, unit, real_ptr, special_ptr, table_ptr, size,
        HAS_REAL, HAS_SPECIAL, HAS_TABLE, HAS_UNITS,
    )  # fmt: skip
    unit = tl.maximum(unit, 0)
    if HAS_RATES:  # thresholds per token: selected, mask, mask or random
        select = tl.load(thresholds_ptr + offs, mask=ok, other=0)
        if not HAS_UNITS:
            mask_below = tl.load(thresholds_ptr + n + offs, mask=ok, other=0)
            random_below = tl.load(thresholds_ptr + 2 * n + offs, mask=ok, other=0)
    if BUDGET:
        key = tl.load(keys_ptr + offs, mask=ok, other=_NO_KEY)
        selected = eligible & (key <= tl.load(limits_ptr + b * 3, mask=inside, other=-1))
    elif HAS_UNITS:
        selected = eligible & (word(unit, sample, epoch_word | 2, seed).to(tl.int64) < select)
    if BUDGET and (PER_UNIT or not HAS_UNITS):
        masked = key <= tl.load(limits_ptr + b * 3 + 1, mask=inside, other=-1)
        replaced = key <= tl.load(limits_ptr + b * 3 + 2, mask=inside, other=-1)
    else:
        index = position
        if PER_UNIT and HAS_UNITS:
            index = unit
        r = word(index, sample, epoch_word, seed).to(tl.int64)
        if not BUDGET and not HAS_UNITS:
            selected = eligible & (r < select)
        masked = r < mask_below
        replaced = r < random_below
    new = word(position, sample, epoch_word | 1, seed).to(tl.int64)
    new = (new * replacements) >> 32
    if HAS_REPLACEMENT:
        new = tl.load(replacement_ptr + new).to(tl.int64)
    seen = tl.where(masked, mask_token_id, tl.where(replaced, new, ids))
    tl.store(out_ptr + offs, tl.where(selected, seen, ids), mask=ok)
    tl.store(labels_ptr + offs, tl.where(selected, ids, ignore_index), mask=ok)


def mask_tokens(job: Job) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = job.input_ids.numel()
    masked = torch.empty_like(job.input_ids, memory_format=torch.contiguous_format)
    labels = torch.empty_like(masked)
    if n:
        ids = job.input_ids.reshape(-1).contiguous()
        sample_ids = job.sample_ids
        if sample_ids is None:
            sample_ids = hash_rows(job.input_ids, job.cu_seqlens, job.attention_mask)
        bounds, real = row_bounds(job.input_ids, job.cu_seqlens), as_bytes(job.attention_mask)
        samples, first = bounds.numel() - 1, first_real(bounds, real)
        special, table = as_bytes(job.special_tokens_mask), as_bytes(job.maskable)
        unit = None if job.units is None else job.units.reshape(-1).contiguous()
        sample = None
        if job.cu_seqlens is not None:
            token = torch.arange(n, device=ids.device)
            sample = torch.searchsorted(bounds, token, right=True, out_int32=True) - 1
        flags = {
            "PACKED": sample is not None,
            "HAS_REAL": real is not None,
            "HAS_SPECIAL": special is not None,
            "HAS_TABLE": table is not None,
            "HAS_UNITS": unit is not None,
        }
        length = 1 if job.cu_seqlens is not None else job.input_ids.shape[1]
        size = job.vocab_size if table is None else table.numel()
        grid = (triton.cdiv(n, BLOCK),)

        def present(tensor: Tensor | None) -> Tensor:  # a kernel never reads an absent one
            return ids if tensor is None else tensor

        keys = limits = None
        if job.budget:
            keys = torch.empty(n, dtype=torch.int64, device=ids.device)
            limits = torch.empty(samples, 3, dtype=torch.int64, device=ids.device)
            leaders = None
            if unit is not None:
                leaders = _leaders(job, special, unit)
            _keys[grid](
                ids, present(sample), sample_ids.contiguous(), first, present(real),
                present(special), present(table), present(unit), present(leaders), keys,
                n, length, samples, size, job.seed, job.epoch << 8, **flags, BLOCK=BLOCK,
            )  # fmt: skip
            if samples:
                _limits[(samples,)](
                    keys, first, bounds, limits, thresholds(job.rate, 1.0, 0.0)[0],
                    *thresholds(1.0, job.mask_share, job.random_share)[1:],
                    AT_LEAST_ONE=job.at_least_one, HAS_UNITS=unit is not None, BLOCK=BLOCK,
                )  # fmt: skip
        select, mask_below, random_below = thresholds(job.rate, job.mask_share, job.random_share)
        if unit is not None:
            mask_below, random_below = thresholds(1.0, job.mask_share, job.random_share)[1:]
        replacements = (
            job.vocab_size if job.replacement_ids is None else job.replacement_ids.numel()
        )
        _mask_tokens[grid](
            ids, present(sample), sample_ids.contiguous(), first, present(real), present(special),
            present(table), present(job.replacement_ids).contiguous(), present(unit),
            present(_thresholds(job)), present(keys), present(limits),
            masked, labels, n, length, samples, size, replacements, job.seed, job.epoch << 8,
            job.mask_token_id, job.ignore_index, select, mask_below, random_below, **flags,
            HAS_REPLACEMENT=job.replacement_ids is not None, HAS_RATES=job.rates is not None,
            BUDGET=job.budget, PER_UNIT=job.per_unit, BLOCK=BLOCK,
        )  # fmt: skip
    return masked, labels, *reference.predicted(labels.view(-1) != job.ignore_index, job.capacity)


def _thresholds(job: Job) -> Tensor | None:
    """int64 [3, N]: the three thresholds of each token's own rate."""
    if job.rates is None:
        return None
    p = job.rates.reshape(-1).double().nan_to_num(0.0).clamp(0.0, 1.0)
    shares = (1.0, job.mask_share, min(job.mask_share + job.random_share, 1.0))
    return torch.stack([reference.threshold_of(p * share) for share in shares])


def _leaders(job: Job, special: Tensor | None, unit: Tensor) -> Tensor:
    """The reference's leaders: a sort, which torch does best."""
    _, sample, position, real = reference.rng.layout(
        job.input_ids, job.cu_seqlens, job.attention_mask
    )
    may = reference.may_mask(job.input_ids.reshape(-1), special, job.maskable)
    return reference.leaders(sample, position, unit.long(), real & may & (unit >= 0))
