"""Units and their rates: words, spans of units, rates from weights."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from maskkernels.tokens.checks import (
    INTEGERS,
    check_column,
    check_dense,
    check_ids,
    check_like,
    check_number,
    check_table,
    check_vector,
    epoch_bits,
    seed_bits,
    sequence_of,
)
from maskkernels.units import op
from maskkernels.units.lengths import length_thresholds


def word_units(
    input_ids: Tensor,
    table: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    groups: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample by the word boundaries that a vocabulary marks.

    A token that may be masked begins a word if it is the first of its sample, if the token before
    it may not be masked or has the flag ``ENDS`` (2), or if it has the flag ``STARTS`` (1).

    Args:
        input_ids: [B, T], or flat packed [N] with ``cu_seqlens``; int32 or int64.
        table: uint8 [V], the flags of each id. An id outside it has none.
        cu_seqlens, attention_mask, special_tokens_mask, maskable: which tokens may be masked, as
            for ``mask_tokens``; an id outside ``maskable`` may not.
        groups: int64, shaped like input_ids: consecutive tokens with the same number are one unit,
            regardless of the words; negative: in no group.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU). All give the same bits.

    Returns:
        int64, shaped like input_ids: the word number of each token that may be masked, from 0 in
        each sample; -1 elsewhere.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.

    Examples:
        >>> import torch
        >>> from maskkernels import STARTS, word_units
        >>> table = torch.tensor([STARTS, STARTS, 0], dtype=torch.uint8)  # id 2 continues a word
        >>> word_units(torch.tensor([[0, 2, 1, 2, 2, 1]]), table).tolist()
        [[0, 0, 1, 1, 1, 2]]
    """
    where = _checked(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, groups)
    check_table("table", table, torch.uint8, input_ids)
    return _run("word_units", backend, input_ids, table, *where)


def units_from_offsets(
    input_ids: Tensor,
    offset_mapping: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    groups: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample by the gaps in its text.

    A token that may be masked begins a word if it is the first of its sample, if the token before
    it may not be masked, or if it begins in the text behind the end of that one or in front of its
    beginning. Tokens that overlap, such as the bytes of one character, are in one word. Where no
    tokens overlap these are the words of Transformers' collator, which separates such tokens.

    Offsets that begin at the space before a word leave no gaps: then every row is one word.

    Args:
        offset_mapping: int64 [*input_ids.shape, 2], where each token begins and ends in its text.
        the others: as for ``word_units``.

    Returns:
        int64, as ``word_units``.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.

    Examples:
        >>> import torch
        >>> from maskkernels import units_from_offsets
        >>> offsets = torch.tensor([[[0, 4], [4, 7], [8, 12]]])  # a space before the third
        >>> units_from_offsets(torch.tensor([[5, 6, 7]]), offsets).tolist()
        [[0, 0, 1]]
    """
    where = _checked(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, groups)
    check_column("offset_mapping", offset_mapping, (*input_ids.shape, 2), input_ids)
    return _run("units_from_offsets", backend, input_ids, offset_mapping, *where)


def units_from_word_ids(
    input_ids: Tensor,
    word_ids: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    groups: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample where the word id changes.

    Args:
        word_ids: int64, shaped like input_ids; a negative number: the token is in no word and is
            never masked.
        the others: as for ``word_units``.

    Returns:
        int64, as ``word_units``.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.

    Examples:
        >>> import torch
        >>> from maskkernels import units_from_word_ids
        >>> ids, word_ids = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[-1, 0, 0, 1]])
        >>> units_from_word_ids(ids, word_ids).tolist()
        [[-1, 0, 0, 1]]
    """
    where = _checked(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, groups)
    check_column("word_ids", word_ids, tuple(input_ids.shape), input_ids)
    return _run("units_from_word_ids", backend, input_ids, word_ids, *where)


def span_units(
    units: Tensor,
    lengths: Sequence[float],
    *,
    sample_ids: Tensor,
    seed: int,
    epoch: int = 0,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Join units (words, or single tokens) into spans of random length, redrawn in every epoch.

    Every run of units without a gap is cut into consecutive spans. A span that begins at unit u
    has 1 + (number of thresholds of ``lengths`` that are not above r) units, for word r of stream 9
    at index u, or as many as the run has left. ``mask_tokens(units=...)`` then selects each span by
    its own word.

    A run is a window on an endless sequence of spans: its first span has the length that remains
    of a span lying across the beginning, and its last span ends with the run. Spans therefore
    begin at every unit with the same probability, and n-grams of a fixed length, too, begin at
    different units in each epoch.

    SpanBERT draws a length and a place until 15% of the tokens are masked, and draws again where
    spans overlap. Here every token is selected with probability ``rate`` exactly, because its span
    is. A span is selected regardless of its length, so the lengths of the selected spans follow
    ``lengths``, except for spans cut by the ends of a run. Selected spans can touch, as SpanBERT's
    can.

    Args:
        units: int32 or int64, [B, T] or flat [N] with ``cu_seqlens``: numbered from 0 in the order
            of the sample's tokens, as by ``word_units``; negative: in no unit.
        lengths: the probability of each length 1, 2... (``geometric_lengths`` for SpanBERT's;
            [0, 0, 1] for three units), or weights proportional to it.
        sample_ids: int64 [B], the identity of each sample (``hash_rows``).
        seed, epoch, cu_seqlens: as for ``mask_tokens``.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU). All give the same bits. The
            first call with new lengths on a GPU waits for their table to be copied.

    Returns:
        int64, shaped like units: the span of each token, counted from 0 in its sample; -1 where
        there is no unit.

    Raises:
        TypeError, ValueError: an argument that does not fit; units that are not numbered so: at or
            past the number of tokens, or falling back or skipping a number in a run. They are
            looked at on the CPU only (a GPU takes any numbers).

    Examples:
        >>> import torch
        >>> from maskkernels import geometric_lengths, span_units
        >>> words = torch.arange(12).view(1, 12)
        >>> span_units(words, geometric_lengths(), sample_ids=torch.tensor([0]), seed=1).tolist()
        [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2]]
    """
    samples = _check_units(units, cu_seqlens)
    if sample_ids is None:
        raise TypeError("sample_ids must be an int64 tensor, got None")
    check_vector("sample_ids", sample_ids, units, (torch.int64,), samples)
    # A trace cannot look into a cache.
    thresholds = length_thresholds if torch.compiler.is_compiling() else _kept_thresholds
    whole, cut = thresholds(_checked_lengths(lengths))
    bits = (seed_bits(seed), epoch_bits(epoch))
    return _run("span_units", backend, units, whole, cut, sample_ids, cu_seqlens, *bits)


def _checked_lengths(lengths: Any) -> tuple[float, ...]:
    if isinstance(lengths, Tensor) and lengths.dim():
        lengths = lengths.tolist()
    lengths = sequence_of("lengths", lengths, "numbers")
    for n, share in enumerate(lengths):
        if type(share) is not float:
            check_number(f"lengths[{n}]", share)
    return lengths


_kept_thresholds = lru_cache(maxsize=64)(length_thresholds)


def rates_from_weights(
    weights: Tensor,
    units: Tensor,
    rate: float,
    *,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scale weights to rates of units, so that the share ``rate`` of the tokens is masked.

    In each sample, the rate of a unit with weight w is min(1, c w). The factor c is the one for
    which the expected number of masked tokens, the sum of the rates over the n maskable tokens, is
    rate * n. A unit with c w above 1 is always masked, and the others share the rest. Weights are
    quantised to integer multiples of 2^-24 of the sample's largest (rounded down, positive weights
    to at least 1), so that sums are exact in any order.

    Args:
        weights: float, shaped like units; a unit has its first token's weight. 0: never masked.
        units: as for ``span_units``, with the tokens of a unit consecutive; any numbers.
        rate: in [0, 1].
        cu_seqlens: as for ``mask_tokens``.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU). All give the same bits.

    Returns:
        float64, shaped like units, for ``mask_tokens(units=units, rates=...)``; 0 where there is no
        unit.

    Raises:
        TypeError, ValueError: an invalid argument; a weight that is negative, infinite or NaN; a
            sample with too few weighted tokens to reach the rate. Weights are checked on the CPU
            only. On a GPU, where the check would wait for the device, such a weight counts as 0,
            and all weighted tokens of such a sample are masked.

    Examples:
        >>> import torch
        >>> from maskkernels import rates_from_weights
        >>> weights, units = torch.tensor([[1.0, 1.0, 2.0, 0.0]]), torch.arange(4).view(1, 4)
        >>> rates_from_weights(weights, units, rate=0.25).tolist()
        [[0.25, 0.25, 0.5, 0.0]]
    """
    _check_units(units, cu_seqlens)
    check_dense("weights", weights)
    check_like("weights", weights, units)
    if not weights.dtype.is_floating_point:
        raise TypeError(f"weights must be a float tensor, got {weights.dtype}")
    check_number("rate", rate)
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
    return _run("rates_from_weights", backend, weights, units, float(rate), cu_seqlens)


def _check_units(units: Tensor, cu_seqlens: Tensor | None) -> int:
    """Check the units and return the number of samples."""
    if not isinstance(units, Tensor) or units.dtype not in INTEGERS:
        raise TypeError(
            f"units must be int32 or int64, got {getattr(units, 'dtype', type(units).__name__)}"
        )
    check_ids(units, cu_seqlens, None)
    return units.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


def _checked(
    input_ids: Tensor,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    special_tokens_mask: Tensor | None,
    maskable: Tensor | None,
    groups: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Check the arguments that say which tokens may be masked, and return all but the ids."""
    check_ids(input_ids, cu_seqlens, attention_mask)
    check_like("special_tokens_mask", special_tokens_mask, input_ids)
    if maskable is not None:
        check_table("maskable", maskable, torch.bool, input_ids)
    if groups is not None:
        check_column("groups", groups, tuple(input_ids.shape), input_ids)
    return cu_seqlens, attention_mask, special_tokens_mask, maskable, groups


def _run(name: str, backend: str, *args: Any) -> Tensor:
    """Run function ``name`` on the backend for the device of its first argument."""
    return op.OPS[name](backend, args[0].device, *args)
