"""The labels of a batch: the value that is ignored, the places of the others, and their weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskkernels import IGNORE_INDEX


def label_places(labels: Tensor, capacity: bool | int) -> Tensor:
    """Return the places of labels in each row, int64 [B, k]: ``label_positions``.

    A row of places for each row of the batch, so that whoever cuts batches, or joins them, cuts and
    joins their places as well.

    Args:
        labels: [B, T]; IGNORE_INDEX marks those that are none.
        capacity: True: k is the most labels of any row; a number: k, and a GPU is not waited for.
            -1 follows the last place of a row.

    Raises:
        ValueError: a row has more labels than ``capacity`` (found on the CPU only); True on a GPU,
            which would have to be waited for.
    """
    labelled = labels != IGNORE_INDEX
    count, length = labels.shape
    if labels.device.type == "cpu":
        found = np.flatnonzero(labelled.numpy())
        counts = np.count_nonzero(labelled.numpy(), axis=1)
        most = int(counts.max(initial=0))
        size = most if capacity is True else capacity
        if most > size:
            raise ValueError(
                f"row {int(counts.argmax())} of the batch has {most} labels, "
                f"label_positions={capacity} has no room for them"
            )
        rows = np.repeat(np.arange(count), counts)
        slots = np.arange(len(found)) - np.repeat(counts.cumsum() - counts, counts)
        table = np.full((count, size), -1)
        table[rows, slots] = found - rows * length
        return torch.from_numpy(table)
    if capacity is True:
        raise ValueError(
            "label_positions=True counts the labels, and a batch that is masked on a GPU would "
            "wait for it: give the most labels that a row may have, label_positions=n"
        )
    places = torch.arange(length, device=labels.device).expand(count, length)
    places = torch.where(labelled, places, length).sort(1).values[:, :capacity]
    places = torch.where(places < length, places, -1)
    return F.pad(places, (0, capacity - places.shape[1]), value=-1)


def weighing_columns(
    label_weights: Tensor | None, num_items: Tensor | None, labels: Tensor, rows: int
) -> dict[str, Tensor]:
    """Return what a plan adds to a batch: ``label_weights`` and ``num_items``, if given.

    Args:
        label_weights: floats, shaped like ``labels``; those of tokens without a label become 0.
        num_items: int64 [B], how much each row counts in the number that the loss is divided by.
        rows: B, which is not that of ``labels`` in a packed batch.

    Raises:
        TypeError, ValueError: what is none of these.
    """
    columns = {}
    if label_weights is not None:
        if not isinstance(label_weights, Tensor) or label_weights.is_complex():
            raise TypeError(
                f"a plan's label_weights must be a tensor of floats, got {_kind(label_weights)}"
            )
        if label_weights.shape != labels.shape:
            raise ValueError(
                f"a plan's label_weights must be like input_ids, {tuple(labels.shape)}, got "
                f"{tuple(label_weights.shape)}"
            )
        columns["label_weights"] = torch.where(labels != IGNORE_INDEX, label_weights, 0.0).float()
    if num_items is not None:
        _check_items(num_items, rows)
        columns["num_items"] = num_items
    return columns


def _check_items(num_items: Any, rows: int) -> None:
    integers = (torch.int32, torch.int64)
    if not isinstance(num_items, Tensor) or num_items.dtype not in integers:
        raise TypeError(f"a plan's num_items must be a tensor of int64, got {_kind(num_items)}")
    if num_items.shape != (rows,):
        raise ValueError(
            f"a plan's num_items must have a number for each of the {rows} rows, got "
            f"{tuple(num_items.shape)}"
        )


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def labels_of_next_tokens(input_ids: Any, pad_token_id: int | None, bounds: Tensor | None) -> Any:
    """Return the labels of a causal model: every token but padding.

    Args:
        input_ids: [B, T], or packed [1, N + P]; a tensor or an array, as the labels are.
        pad_token_id: the id of padding in [B, T]. None: there is none.
        bounds: of packed rows, int64 [B + 1]: their first tokens, which follow no other, and all
            after the last row are ignored.
    """
    labels = torch.as_tensor(input_ids).clone()
    if bounds is not None:
        labels[0, bounds[:-1][bounds.diff() > 0]] = IGNORE_INDEX
        labels[0, int(bounds[-1]) :] = IGNORE_INDEX
    elif pad_token_id is not None:
        labels[labels == pad_token_id] = IGNORE_INDEX
    return labels if isinstance(input_ids, Tensor) else labels.numpy()
