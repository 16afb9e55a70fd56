"""Denoising: check the inputs, choose a backend, compute.

No PyTorch op stands between: rows change length, so no result has a shape that a compiled graph
could plan with, and a collator calls these outside of one.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import resolve
from maskkernels.denoise.job import Batch, CorruptedRows, span_counts
from maskkernels.denoise.policy import Denoiser, SpanCorruption, TextInfilling, denoiser_table
from maskkernels.rng import hash_rows
from maskkernels.rng.api import check_ids, check_like, epoch_bits, seed_bits

_LONGEST = (1 << 31) - 1  # tokens in a row: a choice among them takes 32-bit words
_SEED = (1 << 64) - 1


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
    """Replace random spans of each row by sentinels, and say in the targets what was there.

    A row a b c d e f EOS becomes the inputs a S0 d e S1 EOS and the targets S0 b c S1 f S2 EOS. Of
    n tokens, round(n * noise_density) are noise in round(noise / mean_span_length) spans, at least
    one of each; the lengths of the spans and of what stands in front of each are random
    compositions, each as likely as any other, and the row ends in a span (Raffel et al., 2020).
    ``denoise/reference.py`` states the rest. Targets put back into the inputs give the row, to the
    last token. A row of fewer than two tokens, edges apart, has no span.

    Args:
        input_ids: [B, T], or flat packed [N] with ``cu_seqlens``; int32 or int64, any strides.
            Never written to.
        corruption: sentinels, denoisers and the tokens that stay.
        seed: in [0, 2^64).
        epoch: non-negative, taken modulo 2^24.
        sample_ids: int64 [B], the identity of each sample. None: ``hash_rows`` of its content.
        cu_seqlens: [B + 1], int32 or int64: sample b is input_ids[cu_seqlens[b]:cu_seqlens[b + 1]].
        attention_mask: like input_ids; non-zero where the token is real. None: all are. Other
            tokens are left out.
        backend: "auto", "reference" or "numba". All give the same bits; there is no GPU kernel.

    Returns:
        CorruptedRows(input_ids, cu_seqlens, target_ids, target_cu_seqlens), rows end to end.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name; a row with more spans than
            there are sentinels, saying which.
    """
    if not isinstance(corruption, SpanCorruption):
        raise TypeError(f"corruption must be a SpanCorruption, got {type(corruption).__name__}")
    room = _room("corrupt_spans", input_ids, cu_seqlens, attention_mask, backend)
    batch = _batch(input_ids, seed, epoch, sample_ids, cu_seqlens, attention_mask, backend)
    return room.corrupt_spans(batch, corruption)


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
    """Replace random spans of each row by one mask each; the targets are the rows as they were.

    Of n tokens, round(n * ratio), at least one, are masked. The lengths of the spans are drawn from
    a Poisson distribution until they sum to that, the last cut to fit; a span of length 0 adds a
    mask and takes nothing. Where the masks stand among the tokens that are left is a random
    choice, each as likely as any other. Before that, sentences may be shuffled (Lewis et al.,
    2020). ``denoise/reference.py`` states the rest.

    Args:
        infilling: ratio, lengths, sentences and the tokens that stay.
        others: as for ``corrupt_spans``.

    Returns:
        CorruptedRows; ``target_ids`` may share memory with ``input_ids``.

    Raises:
        TypeError, ValueError: an argument that does not fit, by name.
    """
    if not isinstance(infilling, TextInfilling):
        raise TypeError(f"infilling must be a TextInfilling, got {type(infilling).__name__}")
    room = _room("infill_text", input_ids, cu_seqlens, attention_mask, backend)
    batch = _batch(input_ids, seed, epoch, sample_ids, cu_seqlens, attention_mask, backend)
    return room.infill_text(batch, infilling)


def corrupted_lengths(
    length: int, denoiser: Denoiser | None = None, *, final_sentinel: bool = True, eos: bool = True
) -> tuple[int, int]:
    """(inputs, targets): how long ``corrupt_spans`` makes a row of ``length`` tokens.

    To fill a model's 512 inputs, cut the text into the longest rows that give no more.

    Args:
        length: tokens of the row, the end-of-sequence token included.
        denoiser: None: the default, T5's.
        final_sentinel: as in ``SpanCorruption``.
        eos: rows and targets end in an end-of-sequence token.
    """
    if isinstance(length, bool) or not isinstance(length, int) or not int(eos) <= length:
        raise ValueError(f"length must be an int, at least {int(eos)}, got {length!r}")
    denoiser = Denoiser() if denoiser is None else denoiser
    _, density, mean, prefix, mode = denoiser_table((denoiser,))[0].tolist()
    noise, spans = span_counts(length - eos, density, mean, prefix)
    return length - noise + spans + (mode >= 0), noise + spans + final_sentinel + eos


class ReplacedTokens(NamedTuple):
    """A batch for a discriminator.

    Attributes:
        input_ids: the original ids with the sampled ones at the masked tokens; [B, T].
        is_replaced: int64 [B, T], 1 where the id is not the original one.
    """

    input_ids: Tensor
    is_replaced: Tensor


def replace_tokens(
    input_ids: Tensor,
    labels: Tensor,
    sampled_ids: Tensor,
    *,
    positions: Tensor | None = None,
    ignore_index: int = -100,
) -> ReplacedTokens:
    """Put a generator's samples at the masked tokens; label those that differ from the original.

    With original = where(labels != ignore_index, labels, input_ids) and the samples in place,
    is_replaced = ids != original: a sample that happens to be right counts as original (Clark et
    al., "ELECTRA", 2020, section 2). Plain torch on any device; does not wait for a GPU.

    Args:
        input_ids: [B, T], masked or as they were.
        labels: [B, T], the original id where a token is masked, ``ignore_index`` elsewhere: both
            come from ``mask_tokens``.
        sampled_ids: [B, T], of which the masked places are read; with ``positions``, [R].
        positions: int64 [R], the flat index of each sample, negative where there is none; as
            ``mask_tokens`` returns them.

    Returns:
        ReplacedTokens(input_ids, is_replaced).

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.
    """
    check_ids(input_ids, None, None)
    check_like("labels", labels, input_ids)
    masked = labels != ignore_index
    original = torch.where(masked, labels, input_ids)
    if positions is None:
        check_like("sampled_ids", sampled_ids, input_ids)
        ids = torch.where(masked, sampled_ids, original)
    else:
        if positions.dim() != 1 or sampled_ids.shape != positions.shape:
            raise ValueError(
                "positions and sampled_ids must both be [R], got "
                f"{tuple(positions.shape)} and {tuple(sampled_ids.shape)}"
            )
        # One place more than there are tokens takes the samples that have no position.
        size = input_ids.numel()
        slot = torch.where(positions < 0, size, positions)
        flat = torch.cat([original.reshape(-1), original.new_zeros(1)])
        flat = flat.scatter(0, slot, sampled_ids.to(flat.dtype))
        ids = flat[:size].view(input_ids.shape)
    return ReplacedTokens(ids.to(input_ids.dtype), (ids != original).long())


def _room(
    name: str,
    input_ids: Tensor,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    backend: str,
) -> ModuleType:
    """The backend's module; checks the rows on the way."""
    check_ids(input_ids, cu_seqlens, attention_mask)
    found = resolve(backend, input_ids.device)
    if found == "triton":
        raise ValueError(
            f"backend={backend!r}: {name} has no GPU kernel; call it with CPU tensors, or with "
            "backend='reference', which is slow"
        )
    room = "_numba" if found == "numba" else "reference"
    return import_module(f"maskkernels.denoise.{room}")


def _batch(
    input_ids: Tensor,
    seed: int,
    epoch: int,
    sample_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    backend: str,
) -> Batch:
    """The rows without padding."""
    if cu_seqlens is None:
        count, length = input_ids.shape
        bounds = torch.arange(count + 1, device=input_ids.device).mul_(length)
    else:
        bounds = cu_seqlens.long()
    if sample_ids is not None:
        if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
            got = getattr(sample_ids, "dtype", type(sample_ids).__name__)
            raise TypeError(f"sample_ids must be an int64 tensor, got {got}")
        if sample_ids.shape != (bounds.numel() - 1,):
            raise ValueError(
                f"sample_ids must have shape [{bounds.numel() - 1}], got {tuple(sample_ids.shape)}"
            )
        if sample_ids.device != input_ids.device:
            raise ValueError(
                f"sample_ids is on {sample_ids.device}, input_ids on {input_ids.device}"
            )
    seed, epoch = seed_bits(seed) & _SEED, epoch_bits(epoch)
    ids = input_ids.reshape(-1)
    if attention_mask is not None:
        if sample_ids is None:
            sample_ids = hash_rows(
                input_ids, cu_seqlens=cu_seqlens, attention_mask=attention_mask, backend=backend
            )
        keep = attention_mask.reshape(-1) != 0
        before = torch.cat([bounds.new_zeros(1), keep.cumsum(0)])
        ids, bounds = ids[keep], before[bounds]
    if ids.numel() > _LONGEST:
        longest = int(bounds.diff().max())
        if longest > _LONGEST:
            raise ValueError(f"a row must have fewer than 2**31 tokens, got {longest}")
    return Batch(ids.contiguous(), bounds.contiguous(), sample_ids, seed, epoch)
