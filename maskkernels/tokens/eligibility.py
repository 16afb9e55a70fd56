"""Which tokens may be masked: plain torch, for any device."""

import torch
from torch import Tensor


def may_mask(ids: Tensor, special_tokens_mask: Tensor | None, maskable: Tensor | None) -> Tensor:
    """Return which tokens are not special, bool [N]. An id outside the table may not be masked."""
    if special_tokens_mask is not None:
        return special_tokens_mask.reshape(-1) == 0
    if maskable is None:
        return torch.ones_like(ids, dtype=torch.bool)
    inside = (ids >= 0) & (ids < maskable.numel())
    return inside & maskable[torch.where(inside, ids, 0).long()]
