"""Denoising: check the inputs, choose a backend, compute."""

from typing import NamedTuple

import torch
from torch import Tensor

from maskkernels.denoise import op
from maskkernels.denoise.job import CorruptedRows, DenoiseJob, span_counts
from maskkernels.denoise.policy import Denoiser, SpanCorruption, TextInfilling, denoiser_table
from maskkernels.tokens import IGNORE_INDEX
from maskkernels.tokens.checks import (
    INTEGERS,
    check_dense,
    check_flag,
    check_ids,
    check_int64,
    check_like,
    check_vector,
    epoch_bits,
    seed_bits,
)


def corrupt_spans(
    input_ids: Tensor,
    corruption: SpanCorruption,
    *,
    seed: int,
    epoch: int = 0,
    sample_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    backend: str = "auto",
) -> CorruptedRows:
    """Replace random spans of each row by sentinels, and list the spans in the targets.

    A row a b c d e f EOS becomes the inputs a S0 d e S1 EOS and the targets S0 b c S1 f S2 EOS. Of
    n tokens, round(n * noise_density) are noise in round(noise / mean_span_length) spans, at least
    one of each. The lengths of the spans and of the gaps before them are uniform random
    compositions, and the row ends in a span (Raffel et al., 2020). ``denoise/reference.py``
    specifies the rest. Putting the targets back into the inputs restores the row exactly. A row of
    fewer than two tokens, not counting edges, has no span.

    Args:
        input_ids: [B, T], or flat packed [N] with ``cu_seqlens``; int32 or int64, any strides.
            Never written to.
        corruption: sentinels, denoisers and the tokens that are never corrupted.
        seed: in [0, 2^64).
        epoch: non-negative, taken modulo 2^24.
        sample_ids: int64 [B], the identity of each sample. None: ``hash_rows`` of its content.
        cu_seqlens: [B + 1], int32 or int64: sample b is input_ids[cu_seqlens[b]:cu_seqlens[b + 1]].
        attention_mask: like input_ids; non-zero where the token is real. None: all are. Other
            tokens are dropped.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU). All give the same bits.

    Returns:
        CorruptedRows(input_ids, cu_seqlens, target_ids, target_cu_seqlens), rows end to end.
        On a GPU, where the host does not know the lengths, ``input_ids`` and ``target_ids`` are
        longer, with zeros after the last row. For N tokens (including padding) in B rows there are
        N inputs, plus B if a denoiser has a mode token; and min(N, N * density * (1 + 1 / mean) +
        1 + 2 B) targets, plus B for each of a final sentinel and an eos token. Both sizes depend
        only on shapes and options. ``pad_corrupted`` makes a batch of them. Only the first call
        with new options waits for the device, to upload their ids.

    Raises:
        TypeError, ValueError: an invalid argument, by name; a row with more spans than there are
            sentinels, by index. On a GPU, where the check would wait for the device, such a row
            gets one span per sentinel, with the number of noise tokens unchanged.

    Examples:
        >>> import torch
        >>> from maskkernels import SpanCorruption, corrupt_spans
        >>> corruption = SpanCorruption(sentinel_ids=(99, 98, 97), eos_token_id=1)
        >>> ids = torch.tensor([[11, 12, 13, 14, 15, 16, 17, 1]])
        >>> rows = corrupt_spans(ids, corruption, seed=1)
        >>> rows.input_ids.tolist(), rows.target_ids.tolist()
        ([11, 12, 13, 14, 15, 16, 99, 1], [99, 17, 98, 1])
    """
    if not isinstance(corruption, SpanCorruption):
        raise TypeError(f"corruption must be a SpanCorruption, got {type(corruption).__name__}")
    job = _job(input_ids, seed, epoch, sample_ids, cu_seqlens, attention_mask)
    return CorruptedRows(*op.corrupt_spans(backend, input_ids.device, job, corruption))


def infill_text(
    input_ids: Tensor,
    infilling: TextInfilling,
    *,
    seed: int,
    epoch: int = 0,
    sample_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    backend: str = "auto",
) -> CorruptedRows:
    """Replace random spans of each row by one mask each; the targets are the original rows.

    Of n tokens, round(n * ratio), at least one, are masked. Span lengths are drawn from a Poisson
    distribution until they sum to that number, the last cut to fit; a span of length 0 only inserts
    a mask. The places of the masks among the remaining tokens are chosen uniformly. Before that,
    sentences may be shuffled (Lewis et al., 2020). ``denoise/reference.py`` specifies the rest.

    Args:
        infilling: ratio, lengths, sentences and the tokens that are never masked.
        others: as for ``corrupt_spans``.

    Returns:
        CorruptedRows; ``target_ids`` may share memory with ``input_ids``. On a GPU there is space
        for 2 N inputs and N targets, for N tokens (including padding): no draw needs more.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.

    Examples:
        >>> import torch
        >>> from maskkernels import TextInfilling, infill_text
        >>> infilling = TextInfilling(mask_token_id=4)
        >>> rows = infill_text(torch.arange(11, 21).view(1, 10), infilling, seed=1)
        >>> rows.input_ids.tolist()
        [11, 12, 13, 14, 15, 4, 19, 20]
    """
    if not isinstance(infilling, TextInfilling):
        raise TypeError(f"infilling must be a TextInfilling, got {type(infilling).__name__}")
    job = _job(input_ids, seed, epoch, sample_ids, cu_seqlens, attention_mask)
    return CorruptedRows(*op.infill_text(backend, input_ids.device, job, infilling))


def pad_corrupted(
    rows: CorruptedRows,
    *,
    input_length: int,
    target_length: int,
    padding_value: int = 0,
    ignore_index: int = IGNORE_INDEX,
) -> dict[str, Tensor]:
    """Pad rows to given lengths: a batch of fixed shape, on the device of the rows.

    The result is that of ``pad_batch`` and ``pad_rows`` on ``rows.inputs`` and ``rows.targets``,
    but with lengths other than the longest row's. Plain torch on any device; does not wait for a
    GPU.

    Args:
        rows: the result of ``corrupt_spans`` or ``infill_text``.
        input_length: T. ``corrupt_spans`` makes a row of at most t tokens no longer than
            ``corrupted_lengths(t)``, if at most an end-of-sequence token is kept at its ends.
        target_length: L, for the targets.
        padding_value: fills the inputs of shorter rows.
        ignore_index: fills the targets of shorter rows.

    Returns:
        {"input_ids": [B, T], "attention_mask": [B, T], "labels": [B, L]}, int64.

    Raises:
        TypeError, ValueError: an invalid argument; on the CPU, a row that is too long. On a GPU and
            in a graph, where the check would wait for the device, such a row is cut.

    Examples:
        >>> import torch
        >>> from maskkernels import SpanCorruption, corrupt_spans, pad_corrupted
        >>> corruption = SpanCorruption(sentinel_ids=(99, 98, 97))
        >>> rows = corrupt_spans(torch.arange(11, 19).view(1, 8), corruption, seed=1)
        >>> batch = pad_corrupted(rows, input_length=10, target_length=4)
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[11, 12, 13, 14, 15, 16, 17, 99, 0, 0]], [[99, 18, 98, -100]])
    """
    if not isinstance(rows, CorruptedRows):
        raise TypeError(f"rows must be CorruptedRows, got {type(rows).__name__}")
    check_int64("padding_value", padding_value)
    check_int64("ignore_index", ignore_index)
    _check_rows(rows)
    input_ids, real = _padded("input_length", *rows.inputs, input_length, padding_value)
    labels, _ = _padded("target_length", *rows.targets, target_length, ignore_index)
    return {"input_ids": input_ids, "attention_mask": real.long(), "labels": labels}


def _check_rows(rows: CorruptedRows) -> None:
    """Rows that somebody may have put together by hand."""
    for name, tensor in rows._asdict().items():
        check_dense(name, tensor)
        if tensor.dtype not in INTEGERS or tensor.dim() != 1:
            raise ValueError(
                f"{name} must be int32 or int64 of one dimension, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if tensor.device != rows.input_ids.device:
            raise ValueError(f"{name} is on {tensor.device}, input_ids on {rows.input_ids.device}")
    if rows.cu_seqlens.shape != rows.target_cu_seqlens.shape or not rows.cu_seqlens.shape[0]:
        raise ValueError(
            "cu_seqlens and target_cu_seqlens must both be [B + 1], got "
            f"{tuple(rows.cu_seqlens.shape)} and {tuple(rows.target_cu_seqlens.shape)}"
        )
    if rows.input_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for name, (values, bounds) in (("", rows.inputs), ("target_", rows.targets)):
        ends, n = bounds.tolist(), values.numel()  # a GPU's values are longer than their bounds
        if ends[0] < 0 or ends[-1] > n or ends != sorted(ends):
            raise ValueError(
                f"{name}cu_seqlens must rise, in [0, {n}] ({name or 'input_'}ids.numel()), "
                f"got {ends}"
            )


def _padded(
    name: str, values: Tensor, bounds: Tensor, length: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Return ([B, length] int64, bool mask of the tokens)."""
    check_int64(name, length, 0)
    if length >= 1 << 31:
        raise ValueError(f"{name} must be below 2**31, got {length}")
    lengths = bounds.diff()
    if bounds.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel():
        longest, b = lengths.max(0)
        if longest > length:
            raise ValueError(f"row {int(b)} has {int(longest)} tokens, more than {name}={length}")
    column = torch.arange(length, device=values.device)
    real = column < lengths[:, None]
    at = torch.where(real, bounds[:-1, None] + column, values.shape[0]).clamp(0, values.shape[0])
    return torch.cat([values, values.new_full((1,), 0)]).long()[at].where(real, padding), real


def corrupted_lengths(
    length: int, denoiser: Denoiser | None = None, *, final_sentinel: bool = True, eos: bool = True
) -> tuple[int, int]:
    """Return the (inputs, targets) lengths of a row of ``length`` tokens in ``corrupt_spans``.

    To fill a model's 512 inputs, cut the text into the longest rows that give at most 512.

    Args:
        length: tokens of the row, including the end-of-sequence token.
        denoiser: None: the default, T5's.
        final_sentinel: as in ``SpanCorruption``.
        eos: rows and targets end in an end-of-sequence token.

    Examples:
        >>> from maskkernels import corrupted_lengths
        >>> corrupted_lengths(568)
        (511, 115)
    """
    check_flag("eos", eos)
    if isinstance(length, bool) or not isinstance(length, int) or not int(eos) <= length:
        raise ValueError(f"length must be an int, at least {int(eos)}, got {length!r}")
    denoiser = Denoiser() if denoiser is None else denoiser
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    check_flag("final_sentinel", final_sentinel)
    _, density, mean, prefix, mode = denoiser_table((denoiser,))[0].tolist()
    noise, spans = span_counts(length - eos, density, mean, prefix)
    return length - noise + spans + (mode >= 0), noise + spans + final_sentinel + eos


class ReplacedTokens(NamedTuple):
    """A batch for a discriminator.

    Attributes:
        input_ids: the original ids, with the samples at the masked tokens; [B, T].
        is_replaced: int64 [B, T], 1 where the id differs from the original.

    Examples:
        >>> import torch
        >>> from maskkernels import replace_tokens
        >>> replaced = replace_tokens(
        ...     torch.tensor([[11, 103]]), torch.tensor([[-100, 12]]), torch.tensor([[0, 77]])
        ... )
        >>> replaced.is_replaced.float().mean().item()
        0.5
    """

    input_ids: Tensor
    is_replaced: Tensor


def replace_tokens(
    input_ids: Tensor,
    labels: Tensor,
    sampled_ids: Tensor,
    *,
    positions: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> ReplacedTokens:
    """Put a generator's samples at the masked tokens; label those that differ from the original.

    With original = where(labels != ignore_index, labels, input_ids) and the samples in place,
    is_replaced = ids != original: a sample that equals the original counts as original (Clark et
    al., "ELECTRA", 2020, section 2). Plain torch on any device; does not wait for a GPU.

    Args:
        input_ids: [B, T], masked or original.
        labels: [B, T], the original id where a token is masked, ``ignore_index`` elsewhere: both
            come from ``mask_tokens``.
        sampled_ids: [B, T], read only at masked tokens; with ``positions``, [R].
        positions: int32 or int64 [R], the flat index of each sample, negative where there is none;
            as ``mask_tokens`` returns them.

    Returns:
        ReplacedTokens(input_ids, is_replaced).

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit; on the CPU, a position
            outside the batch. On a GPU, and in a graph, its sample is left out.

    Examples:
        >>> import torch
        >>> from maskkernels import replace_tokens
        >>> ids, labels = torch.tensor([[11, 103, 103]]), torch.tensor([[-100, 12, 13]])
        >>> replaced = replace_tokens(ids, labels, sampled_ids=torch.tensor([[0, 12, 77]]))
        >>> replaced.input_ids.tolist(), replaced.is_replaced.tolist()
        ([[11, 12, 77]], [[0, 0, 1]])
    """
    check_ids(input_ids, None, None)
    for name, tensor in (("labels", labels), ("sampled_ids", sampled_ids)):
        _check_integers(name, tensor, input_ids)
    check_like("labels", labels, input_ids)
    check_int64("ignore_index", ignore_index)
    masked = labels != ignore_index
    original = torch.where(masked, labels, input_ids)
    if positions is None:
        check_like("sampled_ids", sampled_ids, input_ids)
        ids = torch.where(masked, sampled_ids, original)
    else:
        _check_integers("positions", positions, input_ids)
        if positions.dim() != 1 or sampled_ids.shape != positions.shape:
            raise ValueError(
                "positions and sampled_ids must both be [R], got "
                f"{tuple(positions.shape)} and {tuple(sampled_ids.shape)}"
            )
        look = positions.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and positions.numel() and (high := int(positions.max())) >= input_ids.numel():
            raise ValueError(f"positions must be below {input_ids.numel()} tokens, got {high}")
        # One extra slot receives the samples that have no position.
        size = input_ids.numel()
        positions = positions.long()
        slot = torch.where((positions < 0) | (positions >= size), size, positions)
        flat = torch.cat([original.reshape(-1), original.new_zeros(1)])
        flat = flat.scatter(0, slot, sampled_ids.to(flat.dtype))
        ids = flat[:size].view(input_ids.shape)
    return ReplacedTokens(ids.to(input_ids.dtype), (ids != original).long())


def _check_integers(name: str, tensor: Tensor, input_ids: Tensor) -> None:
    check_dense(name, tensor)
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.device != input_ids.device:
        raise ValueError(f"{name} is on {tensor.device}, input_ids on {input_ids.device}")


def _job(
    input_ids: Tensor,
    seed: int,
    epoch: int,
    sample_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
) -> DenoiseJob:
    """Check the rows."""
    check_ids(input_ids, cu_seqlens, attention_mask)
    job = DenoiseJob(
        input_ids, sample_ids, cu_seqlens, attention_mask, seed_bits(seed), epoch_bits(epoch)
    )
    check_vector("sample_ids", sample_ids, input_ids, (torch.int64,), job.samples)
    return job
