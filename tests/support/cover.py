"""Choose few of many cases such that every two of their options still meet."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

Case = TypeVar("Case")


def pairwise(cases: Iterable[Case], options: Callable[[Case], tuple]) -> list[Case]:
    """Take, again and again, the case with the most pairs of options that no case before has.

    Args:
        cases: to choose from, in order.
        options: gives the options of a case, as many for each.
    """
    remaining = list(cases)
    pairs = [set(itertools.combinations(enumerate(options(case)), 2)) for case in remaining]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(remaining)), key=lambda i: len(pairs[i] & missing))
        chosen.append(remaining[best])
        missing -= pairs[best]
    return chosen
