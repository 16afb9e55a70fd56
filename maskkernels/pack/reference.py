"""Packing in plain Python. This file is the specification of the kernel."""

import numpy as np


def pack(lengths: np.ndarray, capacity: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack rows no longer than ``capacity``; return (rows by block [B], bounds [blocks + 1])."""
    blocks: list[list[int]] = []
    space: list[int] = []  # free tokens of each block
    touched: list[int] = []  # when each block received its last row
    size = lengths.tolist()
    placed = 0
    for begin in range(0, len(size), window):
        rows = range(begin, min(begin + window, len(size)))
        for row in sorted(rows, key=lambda r: -size[r]):
            fitting = [k for k in range(len(blocks)) if space[k] >= size[row]]
            block = min(fitting, key=lambda k: (space[k], -touched[k]), default=len(blocks))
            if block == len(blocks):
                blocks.append([])
                space.append(capacity)
                touched.append(0)
            blocks[block].append(row)
            space[block] -= size[row]
            placed += 1
            touched[block] = placed
    ordered = [row for rows in blocks for row in sorted(rows)]
    bounds = np.cumsum([0, *map(len, blocks)])
    return np.array(ordered, np.int64), bounds.astype(np.int64)
