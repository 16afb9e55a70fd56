"""Turn rows of integers in any supported form into one flat array and the bounds of each row.

Lists go through ``struct``, the fastest way from Python integers to a buffer: twice as fast as
``np.array``, and it accepts only integers. Arrays are concatenated. Arrow columns are flat already
and are not copied.
"""

import itertools
import operator
import struct
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskkernels.tokens.checks import check_ids, checked_bounds

_LARGEST = 1 << 63
_NO_ROWS = (str, bytes, bytearray, Mapping, Set)  # text, or without an order
_INTEGER_TENSORS = (
    torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


class FlatRows(NamedTuple):
    """Rows of integers, concatenated.

    Attributes:
        values: int32 or int64 [N].
        bounds: int64 [B + 1]: row b is values[bounds[b]:bounds[b + 1]].
        owned: whether ``values`` shares no memory with the input.
    """

    values: np.ndarray
    bounds: np.ndarray
    owned: bool

    @property
    def longest(self) -> int:
        """Return the length of the longest row; 0 without rows."""
        return int((self.bounds[1:] - self.bounds[:-1]).max(initial=0))


class PackedRows(NamedTuple):
    """Rows of integers end to end, as tensors.

    Attributes:
        values: int32 or int64 [N].
        cu_seqlens: int32 or int64 [B + 1]: row b is values[cu_seqlens[b]:cu_seqlens[b + 1]].

    Examples:
        >>> import torch
        >>> from maskkernels import PackedRows, pad_rows
        >>> rows = PackedRows(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 3]))
        >>> pad_rows(rows).tolist()
        [[7, 8], [9, 0]]
    """

    values: Tensor
    cu_seqlens: Tensor


def flatten_rows(rows: Any, *, name: str = "rows", often_constant: bool = False) -> PackedRows:
    """Concatenate rows of integers into the packed form that ``mask_tokens`` takes.

    Args:
        rows: B rows of integers of any length: lists, tuples, NumPy arrays or tensors (mixed too),
            a 2-D array or tensor, an Arrow list column (chunked or not), or PackedRows.
        name: the name of the rows in errors.
        often_constant: lists of one repeated number are likely, as in attention masks; makes them
            faster.

    Returns:
        PackedRows(values [N], cu_seqlens int64 [B + 1]). ``values`` is int64, or int32 if every
        row is an int32 array. It shares memory with an Arrow column, a 2-D array and PackedRows.

    Raises:
        TypeError: a row is not a sequence of integers; says which and why.
        ValueError: a row is not one-dimensional, holds nulls or an integer past 64 bits.
    """
    found = to_rows(rows, name, often_constant=often_constant)
    values = found.values if found.values.flags.writeable else found.values.copy()
    return PackedRows(torch.from_numpy(values), torch.from_numpy(found.bounds))


def to_rows(rows: Any, name: str, *, often_constant: bool = False) -> FlatRows:
    """Flatten rows as ``flatten_rows`` does, for a column called ``name`` in errors.

    ``often_constant`` says that lists of one repeated number are likely, as in attention masks.
    """
    if type(rows).__module__.partition(".")[0] == "pyarrow":
        return _from_arrow(rows, name)
    if isinstance(rows, PackedRows):
        if rows.cu_seqlens is None:
            raise TypeError(f"the cu_seqlens of {name} must be a torch.Tensor, got NoneType")
        check_ids(rows.values, rows.cu_seqlens, None)
        values = _as_array(rows.values, name)
        return FlatRows(values, checked_bounds(rows.cu_seqlens.cpu(), values.size), False)
    if isinstance(rows, (Tensor, np.ndarray)):
        rows = _as_array(rows, name)
    if isinstance(rows, np.ndarray) and rows.ndim == 0:
        raise TypeError(f"{name} must be rows of integers, got shape ()")
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype != object:
        count, length = rows.shape
        bounds = np.arange(count + 1, dtype=np.int64) * length
        values = _as_integers(rows.reshape(-1), name)
        return FlatRows(values, bounds, not np.may_share_memory(values, rows))
    if isinstance(rows, _NO_ROWS) or not hasattr(rows, "__len__"):
        raise TypeError(f"{name} must be rows of integers, got {type(rows).__name__}")
    rows = list(rows)
    kinds = set(map(type, rows))
    if kinds <= {list, tuple}:
        return _from_lists(rows, name, often_constant)
    if kinds == {Tensor}:
        alike = {(row.dim(), row.is_cpu, row.dtype) for row in rows}
        if len(alike) == 1 and next(iter(alike))[:2] == (1, True):
            bounds = _bounds([row.numel() for row in rows])
            return FlatRows(
                _as_integers(_tensor_as_array(torch.cat(rows), name), name), bounds, True
            )
    if kinds != {np.ndarray}:
        rows = [_as_array(row, f"row {b} of {name}") for b, row in enumerate(rows)]
    return _from_arrays(rows, name)


def _from_lists(rows: list[Sequence[int]], name: str, often_constant: bool) -> FlatRows:
    lengths = list(map(len, rows))
    bounds = _bounds(lengths)
    values = np.empty(int(bounds[-1]), np.int64)
    buffer = values.data.cast("B") if values.size else bytearray()
    done = 0
    try:
        for row, begin, n in zip(rows, bounds.tolist(), lengths, strict=False):
            if often_constant and n and row.count(row[0]) == n:
                values[begin : begin + n] = operator.index(row[0])
            else:
                _packer(n).pack_into(buffer, 8 * begin, *row)
            done += 1
    except (struct.error, TypeError, OverflowError, IndexError):
        raise _not_integers(rows[done], f"row {done} of {name}") from None
    return FlatRows(values, bounds, True)


@lru_cache(maxsize=4096)
def _packer(n: int) -> struct.Struct:
    return struct.Struct(f"{n}q")


def _not_integers(row: Sequence[Any], where: str) -> Exception:
    for i, value in enumerate(row):
        try:
            number = operator.index(value)
        except TypeError:
            hint = "; it is not one-dimensional" if hasattr(value, "__len__") else ""
            return TypeError(f"{where} holds {_short(value)} at {i}, not an integer{hint}")
        if not -_LARGEST <= number < _LARGEST:
            return ValueError(f"{where} holds {number} at {i}, which does not fit in 64 bits")
    return TypeError(f"{where} is not a row of integers")  # it changed while we looked


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 40 else text[:36] + '...'} ({type(value).__name__})"


def _as_array(row: Any, where: str) -> np.ndarray:
    """Return one row as an array, of integers or not."""
    if type(row) is np.ndarray:
        return row
    if isinstance(row, Tensor):
        return _tensor_as_array(row, where)
    if isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row):
        raise ValueError(f"{where} has masked values")
    if isinstance(row, _NO_ROWS) or not hasattr(row, "__len__"):
        raise TypeError(f"{where} must be a sequence of integers, got {type(row).__name__}")
    if hasattr(row, "__array__") or hasattr(row, "__array_interface__"):
        return np.asarray(row)
    return np.fromiter(row, dtype=object, count=len(row))


def _tensor_as_array(row: Tensor, where: str) -> np.ndarray:
    if row.is_meta or row.is_sparse or row.is_nested or row.layout != torch.strided:
        kind = "meta" if row.is_meta else "nested" if row.is_nested else row.layout
        raise TypeError(f"{where} must be a dense tensor with values, got a {kind} one")
    if row.dtype not in _INTEGER_TENSORS:
        if row.numel():
            raise TypeError(f"{where} must hold integers, got {str(row.dtype)[6:]}")
        row = row.detach().long()
    return row.numpy() if row.is_cpu else row.cpu().numpy()


def _from_arrays(rows: list[np.ndarray], name: str) -> FlatRows:
    kinds = {(row.ndim, row.dtype) for row in rows}
    if any(ndim != 1 for ndim, _ in kinds):
        b, row = next((b, row) for b, row in enumerate(rows) if row.ndim != 1)
        raise ValueError(f"row {b} of {name} must be one-dimensional, got shape {row.shape}")
    bounds = _bounds([row.size for row in rows])
    if len(kinds) > 1 or (rows and rows[0].dtype == object):
        rows = [
            _as_integers(row, f"row {b} of {name}").astype(np.int64, copy=False)
            for b, row in enumerate(rows)
        ]
    values = np.concatenate(rows) if rows else np.empty(0, np.int64)
    return FlatRows(_as_integers(values, name), bounds, True)


def _as_integers(row: np.ndarray, where: str) -> np.ndarray:
    """Return an array of integers as int32 or int64."""
    if row.dtype in (np.int64, np.int32):
        return row
    if row.dtype == object:
        return _from_object(row, where)
    if row.size and row.dtype.kind not in "iub":
        raise TypeError(f"{where} must hold integers, got {row.dtype}")
    if row.dtype == np.uint64 and row.size and int(row.max()) >= _LARGEST:
        raise ValueError(f"{where} holds {int(row.max())}, which does not fit in 64 bits")
    return row.astype(np.int64)


def _from_object(row: np.ndarray, where: str) -> np.ndarray:
    values = row.tolist()
    try:
        return _from_lists([values], where, False).values
    except (TypeError, ValueError):
        raise _not_integers(values, where) from None


def _bounds(lengths: list[int]) -> np.ndarray:
    return np.array([0, *itertools.accumulate(lengths)], np.int64)


def _from_arrow(column: Any, name: str) -> FlatRows:
    """Read an Arrow list column, without a copy unless it has several chunks."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    views = (pa.ListViewArray, pa.LargeListViewArray)
    lists = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, *views)
    if not isinstance(column, lists):
        kind = getattr(column, "type", type(column).__name__)
        raise TypeError(f"{name} must be an Arrow list column, got {kind}")
    if column.null_count:
        raise ValueError(f"{name} holds {column.null_count} null rows")
    if isinstance(column, pa.FixedSizeListArray):
        bounds = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
        flat = column.flatten()
    elif isinstance(column, views):  # in any order, with gaps
        bounds, flat = _bounds(column.sizes.to_pylist()), column.flatten()
    else:
        offsets = column.offsets.to_numpy()
        bounds = offsets - np.int64(offsets[0])
        if (bounds[1:] < bounds[:-1]).any() or offsets[0] < 0 or offsets[-1] > len(column.values):
            raise ValueError(f"{name} is broken: its offsets fall or reach past its values")
        flat = column.values.slice(offsets[0], bounds[-1])
    if flat.null_count:
        raise ValueError(f"{name} holds {flat.null_count} nulls inside rows")
    if isinstance(flat, pa.DictionaryArray):
        flat = flat.dictionary_decode()
    if pa.types.is_boolean(flat.type) or pa.types.is_null(flat.type):  # null: every row is empty
        flat = flat.cast(pa.int64())
    if not pa.types.is_integer(flat.type):
        raise TypeError(f"{name} must hold integers, got {flat.type}")
    return FlatRows(_as_integers(flat.to_numpy(), name), bounds, False)
