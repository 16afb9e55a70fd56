"""Numbering words and spans in plain torch. This file is the specification of the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskkernels.rng import reference as rng
from maskkernels.rng.streams import SPAN
from maskkernels.tokens.eligibility import may_mask
from maskkernels.tokens.layout import layout
from maskkernels.units.flags import ENDS, STARTS
from maskkernels.units.lengths import misnumbered
from maskkernels.units.weights import FINEST, not_a_weight, unreachable


def word_units(input_ids, table, *where):
    ids = input_ids.reshape(-1)
    inside = (ids >= 0) & (ids < table.numel())
    flags = torch.where(inside, table[torch.where(inside, ids, 0).long()], 0)
    begins = ((flags & STARTS) != 0) | ((_before(flags) & ENDS) != 0)
    return _number(begins, None, input_ids, *where)


def units_from_offsets(input_ids, offset_mapping, *where):
    begin, end = offset_mapping.reshape(-1, 2).unbind(1)
    begins = (begin > _before(end)) | (begin < _before(begin))
    return _number(begins, None, input_ids, *where)


def units_from_word_ids(input_ids, word_ids, *where):
    word = word_ids.reshape(-1)
    return _number(word != _before(word), word >= 0, input_ids, *where)


def _before(x: Tensor) -> Tensor:
    """Shift ``x`` [N] right by one; the first element repeats."""
    return torch.cat([x[:1], x[:-1]])


def _number(
    begins, in_word, input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, groups
):
    _, sample, _, real = layout(input_ids, cu_seqlens, attention_mask)
    may = real & may_mask(input_ids.reshape(-1), special_tokens_mask, maskable)
    group = None if groups is None else groups.reshape(-1)
    if in_word is not None:
        may = may & (in_word if group is None else in_word | (group >= 0))
    if group is not None:
        begins = (group != _before(group)) | (begins & (group < 0))
    begins = may & (begins | ~_goes_on(may, sample))
    return torch.where(may, _count(begins, sample) - 1, -1).view(input_ids.shape)


def _goes_on(inside: Tensor, sample: Tensor) -> Tensor:
    """Return whether the previous token is inside and in the same sample, bool [N]."""
    goes_on = _before(inside) & (sample == _before(sample))
    goes_on[:1] = False
    return goes_on


def _count(begins: Tensor, sample: Tensor) -> Tensor:
    """Count the true ``begins`` from the start of the sample through each token, int64 [N]."""
    running = begins.cumsum(0)
    before = torch.where(sample != _before(sample), running - begins.long(), 0)
    before[:1] = 0
    return running - torch.cummax(before, 0).values


def span_units(units, whole, cut, sample_ids, cu_seqlens, seed, epoch):
    samples, sample, _, in_sample = layout(units, cu_seqlens, None)
    unit = units.reshape(-1).long()
    inside = in_sample & (unit >= 0)
    goes_on = inside & _goes_on(inside, sample)
    if _may_look(unit):
        _check_numbers(unit, samples, sample, inside, goes_on)
    run_begins = inside & ~goes_on
    begins = run_begins | (goes_on & (unit != _before(unit)))

    key = torch.cat([sample_ids, sample_ids.new_zeros(1)])[sample]
    word = rng.random_words(key, unit.clamp(0), seed, epoch, SPAN)
    length = 1 + torch.where(run_begins, _reached(word, cut), _reached(word, whole))

    # Units in order, then one more that represents the end of every run. ``jump`` is the unit at
    # which the next span begins; following it from the beginning of a run by 1, 2, 4... spans at
    # a time finds every unit at which a span begins.
    n = unit.numel()
    place = torch.where(begins, begins.cumsum(0) - 1, n)

    def by_unit(values: Tensor) -> Tensor:
        found = torch.zeros(n + 1, dtype=torch.int64, device=unit.device).scatter(0, place, values)
        found[n] = 0
        return found

    run = by_unit(run_begins.cumsum(0))
    column = torch.arange(n + 1, device=unit.device)
    jump = (column + by_unit(length)).clamp(max=n)
    jump = torch.where(run[jump] == run, jump, n)
    found = by_unit(run_begins.long())
    for _ in range(n.bit_length()):
        found = (found + torch.zeros_like(found).scatter_add(0, jump, found)).clamp(max=1)
        jump = jump[jump]
    found = begins & (found[place] > 0)
    return torch.where(inside, _count(found, sample) - 1, -1).view(units.shape)


def _check_numbers(
    unit: Tensor, samples: int, sample: Tensor, inside: Tensor, goes_on: Tensor
) -> None:
    """Units are below the length of their sample, and never fall or skip a number in a run."""
    n = unit.numel()
    length = torch.bincount(sample, minlength=samples + 1)
    least = torch.full_like(length, -1)
    highest = least.scatter_reduce(0, sample, torch.where(inside, unit, -1), "amax")
    bad = highest >= length
    key = torch.where(inside, unit.clamp(max=n) + sample * (n + 1), -1)
    step = key - _before(key)
    so_far = _before(torch.cummax(key, 0).values) if n else key
    so_far[:1] = -1
    astray = inside & torch.where(goes_on, (step < 0) | (step > 1), key <= so_far)
    bad |= torch.zeros_like(length).scatter_add(0, sample, astray.long()) > 0
    if bad[:samples].any():
        b = int(bad.long().argmax())
        past = bool(highest[b] >= length[b])
        raise misnumbered(b, int(highest[b]) if past else -1, int(length[b]))


def _reached(word: Tensor, thresholds: Sequence[int]) -> Tensor:
    """Count the thresholds that are not above ``word``; int64, like ``word``."""
    count = torch.zeros_like(word)
    for threshold in thresholds:
        count = count + (word >= threshold)
    return count


def rates_from_weights(weights, units, rate, cu_seqlens):
    samples, sample, _, in_sample = layout(units, cu_seqlens, None)
    unit = units.reshape(-1).long()
    inside = in_sample & (unit >= 0)
    begins = inside & ~(_goes_on(inside, sample) & (unit == _before(unit)))
    column = torch.arange(unit.numel(), device=unit.device)
    first = torch.cummax(torch.where(begins, column, 0), 0).values
    weight = torch.where(inside, weights.reshape(-1).double()[first], 0.0)
    is_weight = (weight >= 0) & (weight < float("inf"))
    if _may_look(unit) and not is_weight.all():
        raise not_a_weight()
    weight = torch.where(is_weight, weight, 0.0)

    def per_sample(values: Tensor, how: str) -> Tensor:
        start = torch.zeros(samples + 1, dtype=values.dtype, device=values.device)
        return start.scatter_reduce(0, sample, values, how)

    largest = per_sample(weight, "amax")[sample]
    part = (weight / largest * FINEST).floor().clamp(min=1.0)
    part = torch.where(weight > 0, part, 0.0).long()
    maskable, weighted = (per_sample(t.long(), "sum") for t in (inside, part > 0))
    asked = rate * maskable.double()
    if _may_look(unit) and (short := asked > weighted).any():
        b = int(short.long().argmax())
        raise unreachable(b, rate, int(weighted[b]), int(maskable[b]))

    # From the heaviest down: if everything heavier than a token is always masked, ``share`` is the
    # factor c for it and all lighter ones. The level is the heaviest part that this factor leaves
    # below 1; the kernels reach it from above, some tokens at a time.
    keys = sample * (2 * FINEST) + (FINEST - part)
    ordered = keys.sort().values
    running = (FINEST - ordered % (2 * FINEST)).cumsum(0)
    running = torch.cat([running.new_zeros(1), running])
    place = torch.searchsorted(ordered, keys)
    begin = torch.searchsorted(ordered, sample * (2 * FINEST))
    end = torch.searchsorted(ordered, (sample + 1) * (2 * FINEST))
    left = (asked[sample] - (place - begin)).clamp(min=0.0)
    share = left / (running[end] - running[place]).clamp(min=1)
    level = per_sample(torch.where(part * share < 1.0, part, 0), "amax")[sample]
    share = per_sample(torch.where(part == level, share, 0.0), "amax")[sample]
    return torch.where(part > level, 1.0, part * share).view(units.shape)


def _may_look(tensor: Tensor) -> bool:
    """Return whether values can be read without waiting for a device or breaking a trace."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
