"""Compare the Triton kernels of units with their reference, interpreted: tests/interpreted."""

import os
import sys

import torch

from maskkernels.units import _triton, reference
from maskkernels.units.lengths import length_thresholds
from tests.support.unit_cases import LENGTHS, unchecked, unit_rows, weight_cases, word_cases

WHERE = ("cu_seqlens", "attention_mask", "special_tokens_mask", "maskable", "groups")


def spans(units, lengths, bounds):
    """(found, expected)."""
    thresholds = length_thresholds(lengths)
    samples = torch.arange(units.shape[0] if bounds is None else bounds.numel() - 1) - 2
    rest = (samples, bounds, -5, (1 << 24) - 1)
    return (
        _triton.span_units(units, *thresholds, *rest),
        reference.span_units(units, *thresholds, *rest),
    )


def comparisons():
    """(name, found, expected)."""
    for name, function, which, ids, arguments in word_cases(full=False):
        where = [arguments.get(argument) for argument in WHERE]
        found, expected = (getattr(m, function)(ids, which, *where) for m in (_triton, reference))
        yield f"{function} {name}", found, expected
    for n, (name, units, bounds) in enumerate(unit_rows(full=False)):
        for m, (kind, lengths) in enumerate(LENGTHS.items()):
            if (n + m) % 2 == 0 or kind == "spanbert":
                yield f"span_units {name} {kind}", *spans(units, lengths, bounds)
    for name, *job in weight_cases(full=False):
        found, expected = (m.rates_from_weights(*job) for m in (_triton, reference))
        yield f"rates_from_weights {name}", found, expected
    reference._may_look = lambda tensor: False  # as on a GPU
    for name, weights, units, rate, bounds in unchecked():
        job = (weights, units, rate, bounds)
        found, expected = (m.rates_from_weights(*job) for m in (_triton, reference))
        yield f"rates_from_weights {name}", found, expected
        yield f"span_units {name}", *spans(units, LENGTHS["spanbert"], bounds)


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    _triton.BLOCK = 128  # rows of several blocks, and yet short
    compared = 0
    for name, found, expected in comparisons():
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            print(f"FAILED {name}\n{found}\n{expected}")
            return 1
        compared += 1
    print(f"{compared} comparisons passed")
    return 0 if compared > 100 else 1


if __name__ == "__main__":
    sys.exit(main())
