"""Where each token of a padded or packed batch is, in plain torch."""

import torch
from torch import Tensor


def layout(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> tuple[int, Tensor, Tensor, Tensor]:
    """Say where each token is: (B, sample [N], position [N], real [N]) with N = input_ids.numel().

    ``position`` counts from the first real token of the sample, so it does not depend on padding.
    """
    n, device = input_ids.numel(), input_ids.device
    column = torch.arange(n, device=device)
    if cu_seqlens is None:
        samples, length = input_ids.shape
        sample = column // max(length, 1)
        inside = torch.ones(n, dtype=torch.bool, device=device)
    else:
        samples = cu_seqlens.numel() - 1
        sample = torch.searchsorted(safe_bounds(cu_seqlens, n), column, right=True) - 1
        inside = (sample >= 0) & (sample < samples)
    real = inside if attention_mask is None else inside & (attention_mask.reshape(-1) != 0)
    slot = torch.where(inside, sample, samples)  # tokens outside every sample share the last slot
    first = torch.full((samples + 1,), n, device=device)
    first = first.scatter_reduce(0, slot, torch.where(real, column, n), "amin")
    return samples, slot, column - first[slot], real


def safe_bounds(cu_seqlens: Tensor, n: int) -> Tensor:
    """Clamp ``cu_seqlens`` to [0, n] and make it non-decreasing; int64 [B + 1].

    On a GPU its values are not checked; this way no sample reaches outside the tokens.
    """
    return cu_seqlens.long().clamp(0, n).cummax(0).values
