"""Read the batch of a user's collator: its ids, its rows, where they are padded or packed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maskft.collate.columns import real_tokens
from maskft.collate.padding import Padding, as_list


def rows_of(examples: list[Any]) -> list[Any] | None:
    """Return the ids of each example; None where they have none."""
    if not all(isinstance(each, Mapping) and "input_ids" in each for each in examples):
        return None
    return as_list([example["input_ids"] for example in examples])


def ids_of(batch: Any) -> Tensor:
    """Return the ids of a batch that the user's collator made.

    Raises:
        TypeError, ValueError: there are none, or they are not a tensor [B, T].
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"the collator must return a mapping, got {type(batch).__name__}")
    if "input_ids" not in batch:
        raise ValueError(
            f"the collator's batch has no 'input_ids' to mask; it has {sorted(map(str, batch))}"
        )
    ids = batch["input_ids"]
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"the collator must return input_ids as a torch.Tensor, got {type(ids).__name__}: give "
            "it return_tensors='pt'"
        )
    if ids.dtype not in (torch.int32, torch.int64) or ids.ndim != 2:
        raise TypeError(
            "the collator must return input_ids as int32 or int64 [B, T], got "
            f"{ids.dtype} {list(ids.shape)}"
        )
    return ids


def bounds_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Return where the rows of a packed batch begin and end, int64 [B + 1]; None: it is padded."""
    ids, real = batch["input_ids"], batch.get("attention_mask")
    given = batch.get("cu_seq_lens_q")
    if given is not None:
        return given.long()
    by_token = isinstance(real, Tensor) and real.numel() == ids.numel()
    if len(ids) != 1 or by_token or not isinstance(batch.get("position_ids"), Tensor):
        return None
    begins = (batch["position_ids"][0].diff() != 1).nonzero()[:, 0] + 1
    return functional.pad(functional.pad(begins, (1, 0)), (0, 1), value=ids.shape[1])


def real_of(batch: Mapping[str, Any], examples: list[Any], tokenizer: Any) -> Tensor | None:
    """Return which tokens are real, [B, T]; None: all of them.

    Raises:
        TypeError, ValueError: neither the batch nor the examples say it.
    """
    ids, given = batch["input_ids"], batch.get("attention_mask")
    if given is not None:
        return real_tokens(given, ids)
    rows = rows_of(examples)
    if rows is not None:
        return alignment(ids, rows, tokenizer.padding_side, ["the real tokens"])[1]
    pad = tokenizer.pad_token_id
    if pad is not None and bool((ids == pad).any()):
        raise ValueError(
            "the collator's batch has pad tokens and no attention_mask, so the rows' own tokens "
            "are not known: have the collator return an attention_mask [B, T]"
        )
    return None


def alignment(ids: Tensor, rows: list[Any], side: str, names: list[str]) -> tuple[Padding, Tensor]:
    """Return how the collator padded the rows, and where their tokens are, bool [B, T]."""
    width = ids.shape[1]
    if len(rows) == len(ids) and max(map(len, rows), default=0) <= width:
        for each in (side, "left" if side == "right" else "right"):
            padding = Padding(each, width)
            real = padding.real(rows, width)
            placed = padding.rows(rows, name="input_ids")
            if placed.shape == ids.shape and bool(((placed == ids) | ~real).all()):
                return padding, real
    raise not_aligned(names)


def not_aligned(names: list[str]) -> ValueError:
    return ValueError(
        f"{', '.join(names)} cannot be lined up with the batch: its input_ids are not those of the "
        "examples, padded or end to end. Cut and extend rows before the collator, when tokenizing"
    )
