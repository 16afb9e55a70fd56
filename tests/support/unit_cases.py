"""Units, spans and rates that all backends are compared on; imported by tests and a subprocess."""

import itertools

import torch

from maskkernels import geometric_lengths
from tests.support.mask_cases import SHAPES, V, batch

TABLE = torch.randint(
    0, 4, (V - 10,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
LENGTHS = {
    "spanbert": geometric_lengths(), "sixteens": [0] * 15 + [1], "singles": [1],
    "longest": [0] * 63 + [1],
}  # fmt: skip


def layouts(full=True):
    """(name, ids, keyword arguments): rows that end in, at and past a block of 128 tokens."""
    for shape in SHAPES if full else ("left", "packed_gaps"):
        yield shape, *batch(shape, 4, 40, seed=3)
    g = torch.Generator().manual_seed(6)
    for length in (1, 128, 129, 450) if full else (128, 450):
        ids = torch.randint(0, V, (2, length), generator=g)
        yield f"length-{length}", ids, {}
    ids = torch.randint(0, V, (600,), generator=g).int()
    yield "packed-long", ids, {"cu_seqlens": torch.tensor([0, 0, 128, 129, 300, 600])}


def word_cases(full=True):
    """(name, function, what it reads beside the ids, ids, keyword arguments)."""
    g = torch.Generator().manual_seed(2)
    limits = itertools.cycle(("none", "table", "special")) if not full else None
    for layout, ids, given in layouts(full):
        beside = {
            "word_units": TABLE,
            "units_from_offsets": torch.randint(0, 3, (*ids.shape, 2), generator=g),
            "units_from_word_ids": torch.randint(-1, 2, ids.shape, generator=g),
        }
        groups = torch.randint(-2, 2, ids.shape, generator=g)
        for name, which in beside.items():
            for limit in ("none", "table", "special") if limits is None else (next(limits),):
                arguments = dict(given)
                if limit == "table":
                    arguments["maskable"] = torch.rand(V - 5, generator=g) < 0.8
                if limit == "special":
                    arguments["special_tokens_mask"] = torch.rand(ids.shape, generator=g) < 0.3
                yield f"{layout}-{limit}", name, which, ids, arguments
                yield f"{layout}-{limit}-groups", name, which, ids, arguments | {"groups": groups}


def unit_rows(full=True):
    """(name, units, cu_seqlens): words of some tokens with gaps, single tokens, twenties, all."""
    g = torch.Generator().manual_seed(4)
    for layout, ids, given in layouts(full):
        bounds = given.get("cu_seqlens")
        column = torch.arange(ids.numel())
        begin = ids.shape[-1] * (column // ids.shape[-1])
        if bounds is not None:
            begin = bounds.long()[torch.searchsorted(bounds.long(), column, right=True) - 1]
        gap = torch.rand(ids.numel(), generator=g) < 0.07
        new = (torch.rand(ids.numel(), generator=g) < 0.7) | gap.roll(1) | (column == begin)
        count = (new & ~gap).long().cumsum(0)
        words = count - (count - (new & ~gap).long())[begin] - 1
        numbers = {
            "singles": column - begin, "twenties": (column - begin) // 20, "one": column * 0,
            "words": torch.where(gap, -1, words),
        }  # fmt: skip
        for name, units in numbers.items():
            dtype = torch.int32 if name == "singles" else torch.int64
            yield f"{layout}-{name}", units.view(ids.shape).to(dtype), bounds


def weight_cases(full=True):
    """(name, weights, units, rate, cu_seqlens), every rate within reach."""
    g = torch.Generator().manual_seed(8)
    rates = (0.0, 0.15, 0.7, 1.0)
    for n, (name, units, bounds) in enumerate(unit_rows(full)):
        shape = units.shape
        levels = 0.5 ** torch.randint(0, 30, shape, generator=g)
        kinds = {
            "skewed": torch.rand(shape, generator=g, dtype=torch.float64) ** 20 + 1e-12,
            "few": torch.randint(1, 4, shape, generator=g).half(),
            "levels": levels,
        }
        for m, (kind, weights) in enumerate(kinds.items()):
            chosen = (rates[(n + m) % 4],) if m == n % 3 else ()
            for rate in rates if full else chosen:
                yield f"{name}-{kind}-{rate}", weights, units, rate, bounds


def unchecked():
    """(name, weights, units, rate, cu_seqlens) of what nobody looks at on a GPU."""
    units = torch.arange(40) // 2
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3))
    for bounds in ([5, 9, 30], [-3, 10, 60], [0, 30, 10, 40], [7], [90, 95], [0, 0, 40, 0]):
        yield f"{bounds}", weights, units, 0.3, torch.tensor(bounds)
    bad = torch.tensor([[float("nan"), 2.0, -1.0, float("inf"), -float("inf"), 1.0, -0.0, 0.5]])
    for rate in (0.15, 0.5, 1.0):
        yield f"weights {rate}", bad, torch.arange(8)[None], rate, None
        yield f"none {rate}", bad * 0.0 - 1.0, torch.arange(8)[None], rate, None
    yield "any units", weights[None], torch.randint(-1, 1 << 33, (1, 40)), 0.3, None
