"""Run copies of texts that differ in what is hidden: the primitive of scores and explanations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskft.insight.logits import device_of, predicted_logits

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Copy:
    """Hold a row of a model with some of its tokens hidden.

    Attributes:
        ids: int64 [n], special tokens included, before anything is hidden. Copies of one text
            share it.
        types: int64 [n], token types, or None.
        hidden: int64 [h], the places that are replaced by the mask token.
        predicted: int64 [p], the places that are predicted.
    """

    ids: np.ndarray
    types: np.ndarray | None
    hidden: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Hold some of the copies as a model takes them.

    Attributes:
        order: which copies, one for each row.
        inputs: input_ids, attention_mask and perhaps token_type_ids, each [B, T].
        rows: int64 [R], the predicted places in the flattened batch, copy by copy.
    """

    order: list[int]
    inputs: dict[str, Tensor]
    rows: Tensor


def batches(
    copies: Sequence[Copy], *, mask_id: int, pad_id: int, batch_tokens: int
) -> Iterator[Batch]:
    """Yield all copies in batches of at most ``batch_tokens`` tokens, padding included.

    Copies of the same length share batches, the longest first, so there is little padding. A copy
    longer than ``batch_tokens`` is a batch of its own.
    """
    lengths = np.array([len(copy.ids) for copy in copies], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable").tolist()
    begin = 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        end = begin + max(batch_tokens // longest, 1)
        yield _batch(copies, order[begin:end], longest, mask_id, pad_id)
        begin = end


def run(
    model: Any, copies: Sequence[Copy], *, mask_id: int, pad_id: int, batch_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (copies, logits): which ones, and [R, V] of their predicted places, copy by copy."""
    device = device_of(model)
    for batch in batches(copies, mask_id=mask_id, pad_id=pad_id, batch_tokens=batch_tokens):
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        yield batch.order, predicted_logits(model, inputs, batch.rows.to(device))


def target_logprobs(
    model: Any, copies: Sequence[Copy], targets: Sequence[np.ndarray], **options: Any
) -> list[np.ndarray]:
    """Return the log-probability of each copy's targets, nats, float64 [p] for each copy.

    log p(t) = logit_t - logsumexp(logits), the logits in float32.

    Args:
        targets: the token at each predicted place of each copy, int64 [p].
        options: of ``run``.
    """
    order: list[int] = []
    found: list[Tensor] = []
    for some, logits in run(model, copies, **options):
        wanted = torch.from_numpy(np.concatenate([targets[i] for i in some])).to(logits.device)
        chosen = logits.gather(1, wanted[:, None]).squeeze(1)
        found.append(chosen - logits.logsumexp(-1))
        order += some
    sizes = [len(targets[i]) for i in order]
    flat = torch.cat(found).cpu().double().numpy() if found else np.zeros(0)
    parts = np.split(flat, np.cumsum(sizes)[:-1]) if sizes else []
    result: list[np.ndarray] = [np.zeros(0)] * len(copies)
    for i, part in zip(order, parts, strict=True):
        result[i] = part
    return result


def _batch(
    copies: Sequence[Copy], order: list[int], longest: int, mask_id: int, pad_id: int
) -> Batch:
    shape = len(order), longest
    ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    types = None if copies[order[0]].types is None else np.zeros(shape, np.int64)
    rows = []
    for row, i in enumerate(order):
        copy, length = copies[i], len(copies[i].ids)
        ids[row, :length] = copy.ids
        ids[row, copy.hidden] = mask_id
        mask[row, :length] = 1
        if types is not None and copy.types is not None:
            types[row, :length] = copy.types
        rows.append(row * longest + copy.predicted)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if types is not None:
        inputs["token_type_ids"] = torch.from_numpy(types)
    return Batch(order, inputs, torch.from_numpy(np.concatenate(rows)))
