"""Whole words: number them in one pass from a table over the vocabulary, offsets or word ids."""

from types import ModuleType

import torch
from torch import Tensor

from maskkernels.backend import resolve
from maskkernels.rng.api import check_ids, check_like
from maskkernels.units import reference


def word_units(
    input_ids: Tensor,
    table: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample by what a vocabulary says about word boundaries.

    A token that may be masked begins a word if it is the first of its sample, if the token before
    it may not be masked or has the flag ``ENDS`` (2), or if it has the flag ``STARTS`` (1).

    Args:
        input_ids: [B, T], or flat packed [N] with ``cu_seqlens``; int32 or int64.
        table: uint8 [V], the flags of each id. An id outside it has none.
        cu_seqlens, attention_mask, special_tokens_mask, maskable: which tokens may be masked, as
            for ``mask_tokens``; an id outside ``maskable`` may not be.
        backend: "auto", "reference" (any device), or "numba" (CPU).

    Returns:
        int64, shaped like input_ids: the word of each token that may be masked, counted from 0 in
        its sample; -1 elsewhere.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.
    """
    if not isinstance(table, Tensor) or table.dtype != torch.uint8 or table.dim() != 1:
        raise TypeError(f"table must be uint8 [V], got {getattr(table, 'dtype', type(table))}")
    room = _room(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, backend)
    return room.word_units(
        input_ids, table, cu_seqlens, attention_mask, special_tokens_mask, maskable
    )


def units_from_offsets(
    input_ids: Tensor,
    offset_mapping: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample by the gaps in its text, as Transformers' collator does.

    A token that may be masked begins a word if it is the first of its sample, if the token before
    it may not be masked, or if it begins in the text elsewhere than where that one ended.

    Args:
        offset_mapping: int64 [*input_ids.shape, 2], where each token begins and ends in its text.
        the others: as for ``word_units``.

    Returns:
        int64, as ``word_units``.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.
    """
    room = _room(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, backend)
    _check_beside("offset_mapping", offset_mapping, (*input_ids.shape, 2), input_ids)
    return room.units_from_offsets(
        input_ids, offset_mapping, cu_seqlens, attention_mask, special_tokens_mask, maskable
    )


def units_from_word_ids(
    input_ids: Tensor,
    word_ids: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    special_tokens_mask: Tensor | None = None,
    maskable: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Number the words of each sample where the word id changes.

    Args:
        word_ids: int64, shaped like input_ids; negative: the token is in no word and is never
            masked.
        the others: as for ``word_units``.

    Returns:
        int64, as ``word_units``.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit.
    """
    room = _room(input_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable, backend)
    _check_beside("word_ids", word_ids, tuple(input_ids.shape), input_ids)
    return room.units_from_word_ids(
        input_ids, word_ids, cu_seqlens, attention_mask, special_tokens_mask, maskable
    )


def _check_beside(name: str, tensor: Tensor, shape: tuple[int, ...], input_ids: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(tensor, 'dtype', tensor)}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != input_ids.device:
        raise ValueError(f"{name} is on {tensor.device}, input_ids on {input_ids.device}")


def _room(
    input_ids: Tensor,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    special_tokens_mask: Tensor | None,
    maskable: Tensor | None,
    backend: str,
) -> ModuleType:
    """Check what the three share; the module that computes."""
    check_ids(input_ids, cu_seqlens, attention_mask)
    check_like("special_tokens_mask", special_tokens_mask, input_ids)
    if maskable is not None and (maskable.dtype != torch.bool or maskable.dim() != 1):
        raise TypeError(f"maskable must be bool [V], got {maskable.dtype} {tuple(maskable.shape)}")
    if backend == "triton":
        raise ValueError("backend='triton': words are numbered by 'reference' or 'numba'")
    traced = torch.compiler.is_compiling() or input_ids.device.type != "cpu"
    if backend == "auto" and traced:
        backend = "reference"
    if resolve(backend, input_ids.device) == "reference":
        return reference
    from maskkernels.units import _numba

    return _numba
