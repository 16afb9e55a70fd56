"""Pack rows into blocks of fixed capacity: check, choose a backend, pack."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskkernels.backend import Op
from maskkernels.tokens.checks import as_int, check_dense

LARGEST = 1 << 24  # tokens in a block; the kernel keeps a list per possible free space
OVERLONG = ("error", "truncate")
_CPU = torch.device("cpu")
_pack = Op("pack", "pack")  # on arrays: never part of a graph


class Packing(NamedTuple):
    """Rows by block.

    Attributes:
        rows: int64 [B], every row once: block k holds rows[bounds[k]:bounds[k + 1]], ascending.
        bounds: int64 [blocks + 1].
        fill: tokens divided by the capacity of all blocks; 1.0 without blocks.

    Examples:
        >>> from maskkernels import pack_rows
        >>> packing = pack_rows([5, 3, 6], capacity=8)
        >>> [part.tolist() for part in packing.rows.tensor_split(packing.bounds[1:-1])]
        [[2], [0, 1]]
    """

    rows: Tensor
    bounds: Tensor
    fill: float

    def blocks(self) -> list[list[int]]:
        """Return the rows of each block."""
        rows, bounds = self.rows.tolist(), self.bounds.tolist()
        return [rows[begin:end] for begin, end in itertools.pairwise(bounds)]


def pack_rows(
    lengths: Any,
    capacity: int,
    *,
    window: int | None = None,
    overlong: str = "error",
    backend: str = "auto",
) -> Packing:
    """Pack rows into blocks of ``capacity`` tokens by best fit; no row is split.

    The rule: rows are processed in windows of ``window`` rows, within a window by decreasing
    length, and rows of equal length in their order. Each goes into the fullest block that has room
    for it; among equally full blocks, into the one that received a row last; if none has room, a
    new block opens. Blocks stay open across windows and are numbered in the order they open. One
    window over all rows is best-fit-decreasing, windows of one row are best-fit. Larger windows
    give fuller blocks, with rows of more similar length.

    Args:
        lengths: B integers, the tokens of each row: a list, a NumPy array or a CPU tensor.
            A row of 0 tokens takes no room.
        capacity: tokens that a block holds, in [1, 2**24].
        window: rows that are sorted together, at least 1. None: all.
        overlong: "error", or "truncate" to count a row longer than a block as ``capacity``; the
            caller that fills the blocks must cut it.
        backend: "auto", "reference" or "numba". Both give the same blocks.

    Returns:
        Packing(rows, bounds, fill).

    Raises:
        TypeError, ValueError: an invalid argument, by name; a row longer than a block, by index.

    Source: Johnson, "Near-optimal bin packing algorithms" (1973); packing of training rows by it:
    Krell et al., "Efficient sequence packing without cross-contamination" (2021), section 3.

    Examples:
        >>> from maskkernels import pack_rows
        >>> packing = pack_rows([5, 3, 4, 4], capacity=8)
        >>> packing.rows.tolist(), packing.bounds.tolist(), packing.fill
        ([0, 1, 2, 3], [0, 2, 4], 1.0)
    """
    sizes = _lengths(lengths)
    capacity = _integer("capacity", capacity, LARGEST)
    rows = max(sizes.size, 1)
    window = rows if window is None else min(_integer("window", window, None), rows)
    if overlong not in OVERLONG:
        raise ValueError(f"overlong must be one of {OVERLONG}, got {overlong!r}")
    if sizes.size and (low := int(sizes.min())) < 0:
        raise ValueError(f"lengths[{int(sizes.argmin())}] is {low}: a length is not negative")
    if sizes.size and int(sizes.max()) > capacity:
        if overlong == "error":
            row = int((sizes > capacity).argmax())
            raise ValueError(
                f"row {row} has {sizes[row]} tokens, a block holds {capacity}: cut the row, or "
                'count it as a full block with overlong="truncate"'
            )
        sizes = np.minimum(sizes, capacity)
    rows, bounds = _pack(backend, _CPU, sizes, capacity, window)
    held = (bounds.size - 1) * capacity
    fill = int(sizes.sum()) / held if held else 1.0
    return Packing(torch.from_numpy(rows), torch.from_numpy(bounds), fill)


def _lengths(lengths: Any) -> np.ndarray:
    """int64 [B], contiguous; a copy, because another thread may write to the caller's."""
    if isinstance(lengths, Tensor):
        check_dense("lengths", lengths)
        if lengths.device.type != "cpu":
            raise ValueError(f"lengths is on {lengths.device}; rows are packed on the cpu")
        lengths = lengths.detach().numpy()
    try:
        array = np.asarray(lengths)
    except ValueError:
        raise TypeError("lengths must be a sequence of integers, one for each row") from None
    if array.ndim != 1:
        raise ValueError(f"lengths must have shape [B], got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"lengths must hold integers, got {array.dtype}")
    if array.size and array.dtype.kind == "u" and int(array.max()) >= 1 << 63:
        raise ValueError(f"lengths holds {int(array.max())}, which does not fit in 64 bits")
    return np.array(array, dtype=np.int64, order="C")


def _integer(name: str, value: Any, most: int | None) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got bool")
    value = as_int(name, value)
    if value < 1 or (most is not None and value > most):
        limits = "positive" if most is None else f"in [1, {most}]"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return value
