"""Cut texts that are longer than a model takes into windows."""

from typing import Any

import numpy as np


def longest_row(tokenizer: Any, model: Any) -> int:
    """Return how many tokens of a row the tokenizer and the model take.

    RoBERTa's family numbers positions from ``padding_idx + 1``, so that many of its
    ``max_position_embeddings`` are never used.

    Args:
        model: None: the tokenizer alone decides.
    """
    limits = [int(tokenizer.model_max_length)]
    if model is not None:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            limits.append(positions)
        for module in model.modules():
            table: Any = getattr(module, "position_embeddings", None)
            if (padding := getattr(table, "padding_idx", None)) is not None:
                limits.append(table.weight.shape[0] - padding - 1)
    return min(limits)


def choose_windows(
    first: np.ndarray, last: np.ndarray, length: int, room: int, stride: int
) -> np.ndarray:
    """Choose the window of each unit: where it begins, int64 [U].

    Windows of ``room`` tokens begin at 0, stride, 2 * stride... and at length - room. Of those that
    hold the whole unit, the one whose middle is nearest to the unit's is chosen, of two the
    earlier; if none does, one with the unit in its middle. A text that fits is one window.

    Args:
        first, last: int64 [U], the first and the last token of each unit.

    Raises:
        ValueError: a unit longer than ``room``.
    """
    if length <= room:
        return np.zeros(len(first), np.int64)
    longest = int((last - first).max(initial=-1)) + 1
    if longest > room:
        raise ValueError(
            f"a unit has {longest} tokens, more than a window of {room}: score single tokens "
            '(method="original")'
        )
    middles = (first + last + 1) // 2
    starts = np.unique([*range(0, length - room, stride), length - room])
    # The nearest window on the grid is the last that begins at or before middle - room / 2, or the
    # one after it.
    ideal = middles - room // 2
    after = np.searchsorted(starts, ideal).clip(1, max(len(starts) - 1, 1))
    pair = np.stack([after - 1, after.clip(max=len(starts) - 1)])
    begins = starts[pair]
    holds = (begins <= first) & (last < begins + room)
    distance = np.where(holds, np.abs(begins - ideal), np.iinfo(np.int64).max)
    chosen = begins[distance.argmin(0), np.arange(len(first))]
    return np.where(holds.any(0), chosen, ideal.clip(0, length - room))
