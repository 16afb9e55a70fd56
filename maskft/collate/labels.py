"""The labels of a batch: the value that is ignored, and the places of the others."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskkernels import IGNORE_INDEX


def label_places(labels: Tensor, capacity: bool | int) -> Tensor:
    """Return the places of labels in the flattened ``labels``, int64 [R]: ``label_positions``.

    Args:
        labels: IGNORE_INDEX marks those that are none.
        capacity: True: as many places as labels; a number: that many, with -1 after the last
            place, and a GPU is not waited for.

    Raises:
        ValueError: there are more labels than ``capacity`` (found on the CPU only); True on a GPU,
            which would have to be waited for.
    """
    labelled = labels.reshape(-1) != IGNORE_INDEX
    if labels.device.type == "cpu":
        found = torch.from_numpy(np.flatnonzero(labelled.numpy()))
        if capacity is True:
            return found
        if len(found) > capacity:
            raise ValueError(
                f"the batch has {len(found)} labels, label_positions={capacity} has no room for "
                "them"
            )
        return F.pad(found, (0, capacity - len(found)), value=-1)
    if capacity is True:
        raise ValueError(
            "label_positions=True counts the labels, and a batch that is masked on a GPU would "
            "wait for it: give the most labels that a batch may have, label_positions=n"
        )
    return torch.nonzero_static(labelled, size=capacity, fill_value=-1).squeeze(1)


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
