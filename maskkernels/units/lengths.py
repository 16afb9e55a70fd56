"""Span lengths: from probabilities to thresholds on a word of the random contract."""

import itertools
import math
from collections.abc import Sequence

from maskkernels.rng import threshold
from maskkernels.tokens.checks import check_number

LONGEST = 64  # units in a span: the kernel compares every unit with all thresholds


def geometric_lengths(p: float = 0.2, longest: int = 10) -> list[float]:
    """Return SpanBERT's P(n) = p (1 - p)^(n - 1) / (1 - (1 - p)^longest) for n = 1..longest.

    The defaults are SpanBERT's; their mean length is 3.80.

    Raises:
        ValueError: p is not in (0, 1], or longest not in [1, 64].

    Source: Joshi et al., "SpanBERT" (2020), section 3.1.

    Examples:
        >>> from maskkernels import geometric_lengths
        >>> lengths = geometric_lengths(p=0.2, longest=10)
        >>> round(sum(n * share for n, share in enumerate(lengths, 1)), 2)
        3.8
    """
    check_number("p", p)
    if not 0.0 < p <= 1.0:
        raise ValueError(f"p must be in (0, 1], got {p}")
    if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= longest <= LONGEST:
        raise ValueError(f"longest must be an int in [1, {LONGEST}], got {longest!r}")
    return _shares([p * (1.0 - p) ** n for n in range(longest)])


def length_thresholds(lengths: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return thresholds for (a whole span, a span cut by the beginning of its run).

    A word r means length 1 + (number of the L - 1 thresholds that are not above r); threshold n is
    T(P(length <= n)). In an endless sequence of spans, the span that covers a given place continues
    for n units with probability P(length >= n) / mean. The first span of a run has this length, so
    that the beginning of a run is distributed like its middle.

    Raises:
        ValueError: ``lengths`` is not a distribution: empty, negative, NaN, or all zero.
    """
    if not 1 <= len(lengths) <= LONGEST:
        raise ValueError(f"lengths must hold 1 to {LONGEST} probabilities, got {len(lengths)}")
    if not all(share >= 0.0 for share in lengths) or not 0.0 < sum(lengths) < math.inf:
        raise ValueError(
            f"lengths must be probabilities with a positive sum that is finite, got {list(lengths)}"
        )
    whole = _shares(lengths)
    cut = _shares([*itertools.accumulate(reversed(whole))][::-1])
    return _thresholds(whole), _thresholds(cut)


def _shares(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [float(weight) / total for weight in weights]


def _thresholds(shares: list[float]) -> tuple[int, ...]:
    return tuple(threshold(min(p, 1.0)) for p in itertools.accumulate(shares[:-1]))


def misnumbered(sample: int, highest: int, length: int) -> ValueError:
    """The error for units that are not numbered from 0 in the order of their sample.

    Args:
        sample: which one.
        highest: a unit past the length of the sample; -1: they are out of order.
        length: tokens of the sample.
    """
    what = (
        f"units go up to {highest} in a sample of {length} tokens"
        if highest >= 0
        else "units fall back or skip a number"
    )
    return ValueError(
        f"{what} (sample {sample}); number them from 0 in each sample, one more for each new unit, "
        "as word_units does"
    )
