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


def check_values(job: MaskJob) -> None:
    """Look at the values of replacement ids and rates, which are on the CPU.

    Raises:
        ValueError: an id outside the vocabulary, a rate that is none.
    """
    size = job.vocab_size if job.maskable is None else job.maskable.numel()
    if job.replacement_ids is not None:
        low, high = int(job.replacement_ids.min()), int(job.replacement_ids.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"replacement_ids go from {low} to {high}, outside the vocabulary [0, {size})"
            )
    check_rates("rates", job.rates)


def check_rates(name: str, rates: Tensor | None) -> None:
    """Every rate is in [0, 1]."""
    if rates is None or not rates.numel():
        return
    values = rates.detach().double().numpy()
    if not (values.min() >= 0 and values.max() <= 1):  # a NaN is both
        raise ValueError(f"{name} must be between 0 and 1, NaN excluded")
