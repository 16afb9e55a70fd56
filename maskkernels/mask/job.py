"""What every masking backend is handed."""

from typing import NamedTuple

from torch import Tensor


class MaskJob(NamedTuple):
    """The checked arguments of ``mask_tokens`` with the policy's fields spelt out.

    ``seed`` holds the bits of an unsigned 64-bit number, ``epoch`` is below 2^24, and ``capacity``
    is -1 where neither count nor positions are wanted: both then come back empty.
    """

    input_ids: Tensor
    sample_ids: Tensor | None
    cu_seqlens: Tensor | None
    attention_mask: Tensor | None
    special_tokens_mask: Tensor | None
    maskable: Tensor | None
    replacement_ids: Tensor | None
    units: Tensor | None
    rates: Tensor | None
    seed: int
    epoch: int
    mask_token_id: int
    vocab_size: int
    rate: float
    mask_share: float
    random_share: float
    budget: bool
    at_least_one: bool
    per_unit: bool
    ignore_index: int
    capacity: int
