"""The arguments and results of every denoising backend."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from maskkernels.batch import PackedRows
from maskkernels.denoise.policy import SpanCorruption, denoiser_table
from maskkernels.tokens.checks import checked_bounds
from maskkernels.tokens.layout import safe_bounds

_LONGEST = (1 << 31) - 1  # tokens in a row: a choice among them uses 32-bit words
_SEED = (1 << 64) - 1
_SHARE = 1 << 20  # unit of the bound on the targets


class DenoiseJob(NamedTuple):
    """Checked rows in the layout they came in, and where their random words come from.

    ``seed`` holds the bits of an unsigned 64-bit number, ``epoch`` is below 2^24.
    """

    input_ids: Tensor
    sample_ids: Tensor | None
    cu_seqlens: Tensor | None
    attention_mask: Tensor | None
    seed: int
    epoch: int

    @property
    def samples(self) -> int:
        if self.cu_seqlens is None:
            return self.input_ids.shape[0]
        return self.cu_seqlens.shape[0] - 1


class Batch(NamedTuple):
    """The rows of a job without padding; ``seed`` is unsigned."""

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

    Examples:
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
        """Return the input rows, for ``pad_rows`` and ``pad_batch``."""
        return PackedRows(self.input_ids, self.cu_seqlens)

    @property
    def targets(self) -> PackedRows:
        """Return the target rows, for ``pad_rows`` and ``pad_batch``."""
        return PackedRows(self.target_ids, self.target_cu_seqlens)


def span_counts(size: int, density: int, mean: int, prefix: int) -> tuple[int, int]:
    """Return (noise tokens, spans) for ``size`` tokens and a row of ``denoiser_table``.

    noise = size * density to the nearest integer, in [1, size - 1]; spans = noise / mean to the
    nearest integer, at least 1 and at most as many as leave each span a token and a token before
    it. Halves are rounded up. Fewer than two tokens have no noise.
    """
    if size < 2:
        return 0, 0
    noise = min(max((size * density + (1 << 31)) >> 32, 1), size - 1)
    if prefix:
        return noise, 1
    spans = ((noise << 16) + mean // 2) // mean
    return noise, min(max(spans, 1), noise, size - noise)


def too_few_sentinels(row: int, size: int, needed: int, given: int) -> ValueError:
    """Return the error for a row with more spans than there are sentinels."""
    return ValueError(
        f"row {row} needs {needed} sentinels for its {size} tokens and there are {given}: "
        "give more sentinel_ids, a longer mean_span_length or shorter rows"
    )


def batch_of(job: DenoiseJob, hash_rows: Callable[..., Tensor]) -> Batch:
    """The rows without padding. Looks at the attention mask, so a GPU is waited for.

    Args:
        job: the rows.
        hash_rows: the backend's, for rows without sample ids.
    """
    input_ids, sample_ids, cu_seqlens, attention_mask, seed, epoch = job
    if cu_seqlens is None:
        count, length = input_ids.shape
        if length:
            bounds = torch.arange(0, count * length + 1, length, device=input_ids.device)
        else:
            bounds = torch.zeros(count + 1, dtype=torch.int64, device=input_ids.device)
    else:
        n = input_ids.numel()
        if cu_seqlens.device.type == "cpu":
            bounds = torch.from_numpy(checked_bounds(cu_seqlens, n))
        else:
            bounds = safe_bounds(cu_seqlens, n)
    ids = input_ids.reshape(-1)
    if attention_mask is not None:
        if sample_ids is None:
            sample_ids = hash_rows(input_ids, cu_seqlens, attention_mask)
        keep = attention_mask.reshape(-1) != 0
        before = torch.cat([bounds.new_zeros(1), keep.cumsum(0)])
        ids, bounds = ids[keep], before[bounds]
    if ids.numel() > _LONGEST:
        check_longest(int(bounds.diff().max()))
    return Batch(ids.contiguous(), bounds.contiguous(), sample_ids, seed & _SEED, epoch)


def check_longest(longest: int) -> None:
    """Check that a row of this length can be drawn from."""
    if longest > _LONGEST:
        raise ValueError(f"a row must have fewer than 2**31 tokens, got {longest}")


def spans_capacity(tokens: int, count: int, corruption: SpanCorruption) -> tuple[int, int]:
    """(inputs, targets): the most that ``count`` rows of ``tokens`` tokens give, whatever is drawn.

    No row has more spans than tokens of noise, or than tokens that are none; noise and spans of n
    tokens are at most n * density * (1 + 1 / mean) + 2.
    """
    table = denoiser_table(corruption.denoisers).tolist()
    modes = any(mode >= 0 for *_, mode in table)
    share = max(-(-density * (mean + 65536) // (mean << 12)) for _, density, mean, _, _ in table)
    behind = int(corruption.final_sentinel) + int(corruption.eos_token_id is not None)
    taken = torch.sym_min(tokens, tokens * share // _SHARE + 1 + 2 * count)
    return tokens + count * int(modes), taken + count * behind
