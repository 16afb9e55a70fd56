"""Which token represents a unit: plain torch, for any device."""

import torch
from torch import Tensor


def leaders(sample: Tensor, position: Tensor, unit: Tensor | None, eligible: Tensor) -> Tensor:
    """Return the position of the first eligible token of each token's unit, int64 [N].

    Only that token represents the unit when units are counted and ranked. Without units, every
    token leads itself. Undefined where not eligible.
    """
    if unit is None:
        return position
    n = unit.numel()
    by_unit = torch.argsort(torch.where(eligible, unit, -1), stable=True)
    order = by_unit[torch.argsort(sample[by_unit], stable=True)]  # by sample, unit, position
    s, u, e = sample[order], unit[order], eligible[order]
    new = torch.ones(n, dtype=torch.bool, device=unit.device)
    new[1:] = (s[1:] != s[:-1]) | (u[1:] != u[:-1]) | ~e[:-1]
    start = torch.cummax(torch.where(new, torch.arange(n, device=unit.device), 0), 0).values
    return torch.empty_like(position).scatter_(0, order, position[order[start]])


def flat_leaders(position: Tensor, leader: Tensor, eligible: Tensor) -> Tensor:
    """Return the flat index of each token's leader, int64 [N]; its own where it is not eligible."""
    place = torch.arange(position.numel(), device=position.device)
    return torch.where(eligible, place - position + leader, place)
