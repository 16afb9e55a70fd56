"""What every denoising backend is handed, and what it gives back."""

from typing import NamedTuple

from torch import Tensor

from maskkernels.batch import PackedRows


class Batch(NamedTuple):
    """Checked rows without padding, and where their random words come from.

    ``seed`` is unsigned, ``epoch`` below 2^24.
    """

    ids: Tensor  # int32 or int64 [N]
    bounds: Tensor  # int64 [B + 1]
    sample_ids: Tensor | None  # int64 [B]; None: the hash of each row
    seed: int
    epoch: int


class CorruptedRows(NamedTuple):
    """Inputs and targets of a denoising batch, rows end to end.

    Attributes:
        input_ids: [N1], dtype of the rows.
        cu_seqlens: int64 [B + 1]: row b is input_ids[cu_seqlens[b]:cu_seqlens[b + 1]].
        target_ids: [N2], dtype of the rows.
        target_cu_seqlens: int64 [B + 1].

    Example:
        >>> import torch
        >>> from maskkernels import SpanCorruption, corrupt_spans, pad_rows
        >>> ids = torch.arange(11, 31).view(2, 10)
        >>> rows = corrupt_spans(ids, SpanCorruption(sentinel_ids=range(99, 89, -1)), seed=1)
        >>> rows.cu_seqlens.tolist(), rows.target_cu_seqlens.tolist()
        ([0, 10, 20], [0, 3, 6])
        >>> pad_rows(rows.targets).tolist()
        [[99, 20, 98], [99, 30, 98]]
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    target_ids: Tensor
    target_cu_seqlens: Tensor

    @property
    def inputs(self) -> PackedRows:
        """What ``pad_rows`` and ``pad_batch`` make a batch of."""
        return PackedRows(self.input_ids, self.cu_seqlens)

    @property
    def targets(self) -> PackedRows:
        """As ``inputs``."""
        return PackedRows(self.target_ids, self.target_cu_seqlens)


def span_counts(size: int, density: int, mean: int, prefix: int) -> tuple[int, int]:
    """(tokens of noise, spans) of ``size`` tokens; the other numbers are a ``denoiser_table`` row.

    noise = size * density to the nearest integer, in [1, size - 1]; spans = noise / mean to the
    nearest, at least 1 and so few that each has a token and a token in front of it. Halves are
    rounded up. Fewer than two tokens have no noise.
    """
    if size < 2:
        return 0, 0
    noise = min(max((size * density + (1 << 31)) >> 32, 1), size - 1)
    if prefix:
        return noise, 1
    spans = ((noise << 16) + mean // 2) // mean
    return noise, min(max(spans, 1), noise, size - noise)


def too_few_sentinels(row: int, size: int, needed: int, given: int) -> ValueError:
    """The error for a row with more spans than there are sentinels."""
    return ValueError(
        f"row {row} needs {needed} sentinels for its {size} tokens and there are {given}: "
        "give more sentinel_ids, a longer mean_span_length or shorter rows"
    )
