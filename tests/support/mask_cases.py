"""Masking problems that all backends are compared on; imported by tests and by a subprocess."""

import itertools
from typing import Any, NamedTuple

import torch

from maskkernels import MaskingPolicy
from maskkernels.mask.job import MaskJob

V = 97
SHAPES = ("right", "left", "full", "packed", "packed_gaps")


def batch(kind, rows=4, length=13, seed=0):
    """(input_ids, keyword arguments) of a layout; row 0 is all padding where there is padding."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (rows, length), generator=g)
    if kind == "full":
        return ids, {}
    if kind == "packed":
        return ids.reshape(-1), {"cu_seqlens": torch.tensor([0, 3, 3, length, rows * length])}
    keep = torch.zeros(rows, length, dtype=torch.int64)
    for b in range(rows):
        n = (b * length) // (rows - 1)
        keep[b, :n] = 1
    if kind == "left":
        keep = keep.flip(1)
    if kind == "packed_gaps":  # an attention mask with holes, over packed samples
        keep = (torch.rand(rows * length, generator=g) < 0.7).long()
        return ids.reshape(-1), {
            "cu_seqlens": torch.tensor([0, 3, 3, length, rows * length], dtype=torch.int32),
            "attention_mask": keep,
        }
    return ids, {"attention_mask": keep}


def unit_tensor(kind, like):
    """Units of three tokens with gaps, or numbers scattered over each row."""
    g = torch.Generator().manual_seed(5)
    if kind == "runs":
        units = (torch.arange(like.numel()) % 13) // 3
        units[::5] = -1
        return units.view(like.shape)
    return torch.randint(-1, 6, like.shape, generator=g)


class MaskCase(NamedTuple):
    """A masking problem.

    Attributes:
        name: says what is special about it; unique.
        input_ids: [B, T], or [N] where the arguments have cu_seqlens.
        policy: of ``mask_tokens``, as are the keyword ``arguments``.
    """

    name: str
    input_ids: torch.Tensor
    policy: MaskingPolicy
    arguments: dict[str, Any]


SELECTIONS = {
    "default": {},
    "mixed": {"rate": 0.4, "mask_share": 0.5, "random_share": 0.3},
    "all-random": {"rate": 1.0, "mask_share": 0.0, "random_share": 1.0},
    "rate-0": {"rate": 0.0},
    "budget": {"selection": "budget", "rate": 0.4, "mask_share": 0.5, "random_share": 0.3},
    "budget-at-least-one": {"selection": "budget", "rate": 0.02, "at_least_one": True},
    "budget-all": {"selection": "budget", "rate": 1.0, "mask_share": 0.34, "random_share": 0.33},
}
# Options that every third, fourth or fifth case has: they meet each of the others, and a grid of
# all with all would be sixty times as large.
DTYPES = ("int32", "int64", "int64")
RATES = (None, "rates", None)
REPLACEMENT_IDS = (None, "replacement_ids", None, None)
SAMPLE_IDS = (None, None, "sample_ids", None, None)
CAPACITIES = ("no-capacity", "capacity-0", "capacity-5", "ample-capacity")


def capacity_of(name, ids):
    """The number that a name of CAPACITIES means for ``ids``."""
    return {"capacity-0": 0, "capacity-5": 5, "ample-capacity": ids.numel() + 3}.get(name)


def cases(full=True):
    """Every selection of single tokens and units, in every layout: MaskCases."""
    g = torch.Generator().manual_seed(9)
    table = torch.rand(V, generator=g) < 0.8
    grid = itertools.product(
        SHAPES if full else ("left", "packed_gaps"), SELECTIONS, (None, "runs", "scattered"),
        ("token", "unit"), ("none", "table", "special"),
    )  # fmt: skip
    options = map(itertools.cycle, (DTYPES, RATES, REPLACEMENT_IDS, SAMPLE_IDS, CAPACITIES))
    chosen = zip(itertools.count(), grid, *options)
    for n, (shape, selection, unit, replacement, special), *names in chosen:
        if (unit is None and replacement == "unit") or (not full and n % 7):
            continue
        dtype, rates, replacement_ids, sample_ids, capacity = names
        ids, arguments = batch(shape) if full else batch(shape, 2, 11)
        policy = MaskingPolicy(3, V, replacement=replacement, **SELECTIONS[selection])
        arguments |= {"seed": (1 << 64) - 1 - n, "epoch": (1 << 24) - 2 + n % 4}
        if special == "table":
            arguments["maskable"] = table
        if special == "special":
            arguments["special_tokens_mask"] = (torch.rand(ids.shape, generator=g) < 0.3).long()
        if unit is not None:
            arguments["units"] = unit_tensor(unit, ids)
        ids = ids.to(getattr(torch, dtype))
        if replacement_ids:
            arguments["replacement_ids"] = torch.tensor([5, 7, 11], dtype=torch.int64)
        if sample_ids:
            count = ids.shape[0] if ids.dim() == 2 else arguments["cu_seqlens"].numel() - 1
            arguments["sample_ids"] = torch.randint(
                -(1 << 63), (1 << 63) - 1, (count,), generator=g
            )
        if policy.selection == "budget":
            rates = None
        if rates:
            arguments["rates"] = torch.rand(ids.shape, generator=g, dtype=torch.float64)
        arguments["capacity"] = capacity_of(capacity, ids)
        units = "tokens" if unit is None else f"{unit}-by-{replacement}"
        parts = (shape, selection, units, special, dtype, rates, replacement_ids, sample_ids)
        name = "-".join(part for part in (*parts, capacity) if part)
        yield MaskCase(name, ids, policy, arguments)


def rates_of(kind, like):
    """Float rates like ``like``: any, some of them 0 and 1, tiny ones, or the same for all."""
    g = torch.Generator().manual_seed(6)
    rates = torch.rand(like.shape, generator=g, dtype=torch.float64)
    if kind == "tiny":  # thresholds of 0, 1 and 2: keys of up to 64 bits
        return torch.randint(0, 5, like.shape, generator=g) / 2.0**33
    if kind == "some":
        return (2 * rates - 0.5).clamp(0, 1).float()
    return {"any": rates, "whole": torch.ones_like(rates), "equal": torch.full_like(rates, 0.3)}[
        kind
    ]


def weighted(full=True):
    """Budgets whose units have rates of their own: MaskCases."""
    grid = itertools.product(
        SHAPES if full else ("left", "packed_gaps"), ("any", "some", "tiny", "whole", "equal"),
        (None, "runs", "scattered"), ("token", "unit"), (False, True),
    )  # fmt: skip
    options = map(itertools.cycle, (("table", "none", "none"), CAPACITIES))
    table = torch.rand(V, generator=torch.Generator().manual_seed(8)) < 0.8
    chosen = zip(itertools.count(), grid, *options)
    for n, (shape, rates, unit, replacement, at_least_one), special, capacity in chosen:
        if (unit is None and replacement == "unit") or (not full and n % 5):
            continue
        ids, arguments = batch(shape) if full else batch(shape, 2, 11)
        arguments |= {"seed": 77 + n, "epoch": n, "rates": rates_of(rates, ids)}
        if unit is not None:
            arguments["units"] = unit_tensor(unit, ids)
        if special == "table":
            arguments["maskable"] = table
        arguments["capacity"] = capacity_of(capacity, ids)
        policy = MaskingPolicy(
            3, V, selection="budget", at_least_one=at_least_one, replacement=replacement,
            mask_share=0.5, random_share=0.3,
        )  # fmt: skip
        units = "tokens" if unit is None else f"{unit}-by-{replacement}"
        least = "at-least-one" if at_least_one else "or-none"
        name = f"{shape}-weighted-{rates}-{units}-{least}-{special}-{capacity}"
        yield MaskCase(name, ids, policy, arguments)


def edges():
    """MaskCases where quads and blocks of tokens begin and end.

    First real tokens at every place modulo four, lengths that are no multiple of it, single tokens
    and rows, rows longer than any block (512, and 1024 for a budget), samples that lie across them.
    """
    g = torch.Generator().manual_seed(3)
    policies = {
        "bernoulli": MaskingPolicy(3, V, rate=0.5),
        "no random": MaskingPolicy(3, V, rate=0.6, random_share=0.0),
        "budget": MaskingPolicy(
            3, V, rate=0.3, selection="budget", mask_share=0.4, random_share=0.4
        ),
    }
    layouts = [("one", (1, 1), [0]), ("pairs", (6, 2), [0, 1, 2, 0, 1, 2])]
    layouts += [(f"left-{t}", (7, t), [0, 1, 2, 3, 4, 5, t]) for t in (6, 7, 131)]
    layouts += [("long", (2, 1029), [0, 515])]
    for (name, shape, starts), selection in itertools.product(layouts, policies):
        policy = policies[selection]
        column = torch.arange(shape[1])
        keep = (column >= torch.tensor(starts)[:, None]) & (column < shape[1] - shape[0] // 7)
        ids = torch.randint(0, V, shape, generator=g)
        arguments = {"seed": 11, "epoch": 0, "capacity": ids.numel() // 3}
        yield MaskCase(f"{name}-{selection}", ids, policy, {**arguments, "attention_mask": keep})
        yield MaskCase(f"{name}-all-{selection}", ids, policy, arguments)
        if selection == "budget":
            arguments = {**arguments, "attention_mask": keep, "rates": rates_of("any", ids)}
            yield MaskCase(f"{name}-weighted", ids, policy, arguments)
    lengths = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6, 7, 511, 0, 512, 513, 1030, 1, 0])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(0, V, (int(bounds[-1]),), generator=g)
    for selection, policy in policies.items():
        arguments = {"seed": 12, "epoch": 1, "capacity": 2000, "cu_seqlens": bounds}
        yield MaskCase(f"packed-all-{selection}", ids, policy, arguments)
        arguments["attention_mask"] = (torch.rand(ids.shape, generator=g) < 0.8).int()
        yield MaskCase(f"packed-{selection}", ids, policy, arguments)
        if selection == "budget":
            arguments = {**arguments, "rates": rates_of("some", ids)}
            yield MaskCase("packed-weighted", ids, policy, arguments)
            arguments = {**arguments, "units": unit_tensor("scattered", ids)}
            yield MaskCase("packed-weighted-units", ids, policy, arguments)


def tied_job(**changes):
    """Units 2^34 apart share their words; the API refuses them, so this goes below it."""
    order = torch.tensor([[3, 3, 1, 1, 4, 4, 2, 2, 0, 0, 5, 5]])
    fields = {
        "input_ids": order + 5, "sample_ids": torch.tensor([9]), "units": order << 34, "seed": 1,
        "epoch": 0, "mask_token_id": 3, "vocab_size": V, "rate": 0.5, "mask_share": 1.0,
        "random_share": 0.0, "budget": True, "at_least_one": False, "per_unit": False,
        "ignore_index": -100, "capacity": -1,
    }  # fmt: skip
    return MaskJob(**dict.fromkeys(MaskJob._fields) | fields | changes)
