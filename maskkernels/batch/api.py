"""Turn rows and examples into padded batches: check, flatten, choose a backend, write."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskkernels.backend import Op, resolve
from maskkernels.batch.rows import FlatRows, to_rows
from maskkernels.tokens.checks import INTEGERS, as_int, check_flag, sequence_of

_CPU = torch.device("cpu")
_pad, _real = Op("batch", "pad"), Op("batch", "real")  # on arrays: never part of a graph


def pad_rows(
    rows: Any,
    *,
    padding_value: int = 0,
    padding_side: str = "right",
    pad_to_multiple_of: int | None = None,
    dtype: torch.dtype = torch.int64,
    pin_memory: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Pad rows of integers to the longest.

    Args:
        rows: B rows in any form that ``flatten_rows`` takes.
        padding_value: fills rows up to the longest.
        padding_side: "right" or "left".
        pad_to_multiple_of: round the length up to a multiple of this.
        dtype: int64 or int32.
        pin_memory: allocate the result in page-locked memory, for asynchronous copies to a GPU.
        backend: "auto", "reference" or "numba".

    Returns:
        [B, T] of ``dtype``, in new memory.

    Raises:
        TypeError, ValueError: as ``flatten_rows``; an invalid argument; with int32, a value that
            does not fit.

    Examples:
        >>> from maskkernels import pad_rows
        >>> pad_rows([[7, 8], [9]], padding_value=0).tolist()
        [[7, 8], [9, 0]]
    """
    found = to_rows(rows, "rows")
    padding = _Padding(padding_side, pad_to_multiple_of, dtype, pin_memory, backend)
    return padding.pad("rows", found, padding_value, padding.length(found))


def pad_batch(
    examples: Any,
    *,
    padding_values: Mapping[str, int],
    padding_side: str = "right",
    pad_to_multiple_of: int | None = None,
    attention_mask: bool = True,
    dtype: torch.dtype = torch.int64,
    pin_memory: bool = False,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Pad examples to a batch, like a Transformers tokenizer's ``pad`` but much faster.

    Args:
        examples: mappings from column names to values, one per row; or one mapping from column
            names to columns; or one or several Arrow tables or pandas frames. A column of rows has
            any form that ``flatten_rows`` takes.
        padding_values: the columns with one integer per token, and the padding value of each. The
            first column gives the lengths and is required; the others are optional.
        padding_side, pad_to_multiple_of, dtype, pin_memory, backend: as for ``pad_rows``.
        attention_mask: add a column "attention_mask", 1 at tokens and 0 at padding, if the examples
            have none.

    Returns:
        a dict of tensors: [B, T] for the columns of ``padding_values``; other columns are stacked
        as ``torch.tensor`` would stack their values.

    Raises:
        TypeError, ValueError: as ``pad_rows``; a column that is missing, does not have one value
            per token, or has rows of different lengths and no padding value.

    Examples:
        >>> from maskkernels import pad_batch
        >>> examples = [{"input_ids": [7, 8]}, {"input_ids": [9]}]
        >>> batch = pad_batch(examples, padding_values={"input_ids": 0})
        >>> {name: column.tolist() for name, column in batch.items()}
        {'input_ids': [[7, 8], [9, 0]], 'attention_mask': [[1, 1], [1, 0]]}
    """
    if not isinstance(padding_values, Mapping) or not padding_values:
        raise TypeError(
            "padding_values must be a mapping from column names to integers, with at least one, "
            f"got {padding_values!r}"
        )
    columns = _columns(examples)
    leader = next(iter(padding_values))
    if leader not in columns:
        raise ValueError(f"the examples have no column {leader!r}; they have {sorted(columns)}")
    padding = _Padding(padding_side, pad_to_multiple_of, dtype, pin_memory, backend)
    lead = to_rows(columns[leader], leader)
    length = padding.length(lead)
    batch = {}
    for name, values in columns.items():
        if name not in padding_values:
            batch[name] = _stack(name, values)
            if len(batch[name]) != lead.bounds.size - 1:
                raise _unlike(name, len(batch[name]), leader, lead)
            continue
        rows = lead if name == leader else to_rows(values, name, often_constant=True)
        if rows is not lead and rows.bounds.tobytes() != lead.bounds.tobytes():
            raise _uneven(name, rows, leader, lead)
        batch[name] = padding.pad(name, rows, padding_values[name], length)
    if attention_mask and "attention_mask" not in batch:
        batch["attention_mask"] = padding.real(lead, length)
    return batch


class _Padding:
    """How every column of a batch is padded."""

    def __init__(
        self,
        padding_side: str,
        pad_to_multiple_of: int | None,
        dtype: torch.dtype,
        pin_memory: bool,
        backend: str,
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f'padding_side must be "left" or "right", got {padding_side!r}')
        if pad_to_multiple_of is not None:
            pad_to_multiple_of = as_int("pad_to_multiple_of", pad_to_multiple_of)
            if not 1 <= pad_to_multiple_of < 1 << 31:
                what = "positive" if pad_to_multiple_of < 1 else "below 2**31"
                raise ValueError(f"pad_to_multiple_of must be {what}, got {pad_to_multiple_of}")
        if dtype not in INTEGERS:
            raise TypeError(f"dtype must be torch.int32 or torch.int64, got {dtype}")
        check_flag("pin_memory", pin_memory)
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True needs a GPU that torch can use; there is none")
        self.left = padding_side == "left"
        self.multiple = pad_to_multiple_of or 1
        self.dtype, self.pin_memory = dtype, pin_memory
        self.backend = resolve(backend, _CPU)

    def length(self, rows: FlatRows) -> int:
        """Return T: the longest row, rounded up."""
        return -(-rows.longest // self.multiple) * self.multiple

    def pad(self, name: str, rows: FlatRows, padding_value: int, length: int) -> Tensor:
        count, values = rows.bounds.size - 1, rows.values
        padding_value = as_int(f"the padding value of {name}", padding_value)
        if not -(1 << 63) <= padding_value < 1 << 63:
            raise ValueError(
                f"the padding value of {name} is {padding_value}, which does not fit in 64 bits"
            )
        if self.dtype == torch.int32:
            _check_int32(name, values, padding_value)
        same = values.dtype == (np.int32 if self.dtype == torch.int32 else np.int64)
        if rows.owned and same and values.size == count * length and not self.pin_memory:
            return torch.from_numpy(values).view(count, length)  # already a padded batch
        out = self.empty(count, length)
        _pad.run(self.backend, _CPU, values, rows.bounds, self.left, padding_value, out.numpy())
        return out

    def real(self, rows: FlatRows, length: int) -> Tensor:
        out = self.empty(rows.bounds.size - 1, length)
        _real.run(self.backend, _CPU, rows.bounds, self.left, out.numpy())
        return out

    def empty(self, count: int, length: int) -> Tensor:
        if self.pin_memory:
            return torch.empty((count, length), dtype=self.dtype, pin_memory=True)
        narrow = self.dtype == torch.int32  # NumPy allocates large arrays in huge pages
        return torch.from_numpy(np.empty((count, length), np.int32 if narrow else np.int64))


def table_columns(examples: Any) -> Mapping[str, Any] | None:
    """Return {column name: column} of a batch given as columns; None for a list of examples.

    Args:
        examples: a mapping; an Arrow table or record batch; a pandas frame; or a list of such
            tables or frames, which are concatenated.
    """
    if isinstance(examples, Mapping):
        return examples
    if isinstance(examples, (list, tuple)) and examples and _is_table(examples[0]):
        tables = list(examples)
    elif _is_table(examples):
        tables = [examples]
    else:
        return None
    if type(tables[0]).__module__.startswith("pandas"):
        return {
            name: [value for table in tables for value in table[name].tolist()]
            for name in tables[0].columns
        }
    import pyarrow as pa

    tables = [pa.Table.from_batches([t]) if isinstance(t, pa.RecordBatch) else t for t in tables]
    table = pa.concat_tables(tables) if len(tables) > 1 else tables[0]
    return dict(zip(table.column_names, table.columns, strict=True))


def _is_table(examples: Any) -> bool:
    library = type(examples).__module__.partition(".")[0]
    attribute = {"pyarrow": "column_names", "pandas": "columns"}.get(library)
    return attribute is not None and hasattr(examples, attribute)


def _columns(examples: Any) -> Mapping[str, Any]:
    """Return the examples by column."""
    columns = table_columns(examples)
    if columns is not None:
        return columns
    if not hasattr(examples, "__len__"):
        raise TypeError(f"examples must be a list of mappings, got {type(examples).__name__}")
    examples = list(sequence_of("examples", examples, "mappings"))
    if not examples:
        raise ValueError("the batch is empty: it needs at least one example")
    for b, example in enumerate(examples):
        if not isinstance(example, Mapping):
            raise TypeError(f"example {b} must be a mapping, got {type(example).__name__}")
    names = examples[0].keys()
    try:
        return {name: [example[name] for example in examples] for name in names}
    except KeyError:
        for b, example in enumerate(examples):
            for name in names:
                if name not in example:
                    raise ValueError(
                        f"example {b} has no column {name!r}, which example 0 has"
                    ) from None
        raise


def _stack(name: str, values: Any) -> Tensor:
    """Stack a column without padding: scalars, or rows of equal length."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise TypeError(f"column {name!r} must have a value for each row, got {values!r}")
    values = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    try:
        if values and getattr(values[0], "ndim", 0):
            stacked = torch.from_numpy(np.stack([np.asarray(value) for value in values]))
            if stacked.is_floating_point():
                return stacked.float()
            return stacked if stacked.dtype == torch.bool else stacked.long()
        if values and isinstance(values[0], (list, tuple)):
            rows = _even_rows(name, values)
            if rows is not None:
                return rows
        return torch.tensor([getattr(value, "tolist", lambda v=value: v)() for value in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"column {name!r} cannot become a tensor ({error}); leave it out, or name it in "
            "padding_values where it has one integer for each token"
        ) from None


def _even_rows(name: str, values: list[Any]) -> Tensor | None:
    """Return lists of integers of equal length as [B, n]; None for anything else."""
    try:
        rows = to_rows(values, name)
    except (TypeError, ValueError):
        return None
    if rows.values.size != len(values) * rows.longest:
        return None
    return torch.from_numpy(rows.values).view(len(values), rows.longest)


def _uneven(name: str, rows: FlatRows, leader: str, lead: FlatRows) -> ValueError:
    if rows.bounds.size != lead.bounds.size:
        return _unlike(name, rows.bounds.size - 1, leader, lead)
    ours, theirs = np.diff(rows.bounds), np.diff(lead.bounds)
    b = int((ours != theirs).argmax())
    return ValueError(f"row {b} has {theirs[b]} values in {leader!r} but {ours[b]} in {name!r}")


def _unlike(name: str, count: int, leader: str, lead: FlatRows) -> ValueError:
    return ValueError(f"column {name!r} has {count} rows, {leader!r} has {lead.bounds.size - 1}")


def _check_int32(name: str, values: np.ndarray, padding_value: int) -> None:
    if values.dtype == np.int32 or not values.size:
        low = high = padding_value
    else:
        low, high = min(int(values.min()), padding_value), max(int(values.max()), padding_value)
    if low < -(1 << 31) or high >= 1 << 31:
        raise ValueError(f"{name} goes from {low} to {high}, which does not fit in int32")
