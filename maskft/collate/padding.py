"""Columns of rows to a padded batch: the result of ``tokenizer.pad``, by maskkernels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.data.data_collator import (
    _numpy_collate_batch,
    _torch_collate_batch,
    pad_without_fast_tokenizer_warning,
)
from transformers.utils import to_py_obj

from maskkernels import pad_batch, pad_rows
from maskkernels.batch import flatten_rows


@dataclass(frozen=True)
class Padding:
    """Pad rows on a ``side``, up to a ``multiple`` of tokens (None: of 1)."""

    side: str
    multiple: int | None

    def rows(self, rows: Any, value: int = 0, *, name: str, width: int = 1) -> Tensor:
        """Return int64 [B, T * width] from rows that have ``width`` integers for each token.

        ``name`` is the column's, for errors.
        """
        return pad_rows(
            flatten_rows(rows, name=name),
            padding_value=value,
            padding_side=self.side,
            pad_to_multiple_of=width * self.multiple if self.multiple else width,
        )

    def floats(self, rows: list[Any], value: float, shape: tuple[int, ...]) -> Tensor:
        """Return float64 of ``shape`` [B, T] from rows that have a number for each token."""
        if sum(map(len, rows)) == shape[0] * shape[1]:  # nothing to pad
            return torch.from_numpy(np.concatenate(rows, dtype=np.float64).reshape(shape))
        out = np.full(shape, value)
        for b, row in enumerate(rows):
            out[b, shape[1] - len(row) if self.side == "left" else 0 :][: len(row)] = row
        return torch.from_numpy(out)

    def real(self, rows: Any, length: int) -> Tensor:
        """Return bool [B, length], true at the tokens of the rows."""
        own = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        column = torch.arange(length)
        return column >= length - own if self.side == "left" else column < own


def pad_columns(
    columns: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    pad_to_multiple_of: int | None,
    framework: str,
) -> dict[str, Any]:
    """Pad columns as ``tokenizer.pad`` does, and call it if it pads in its own way.

    Args:
        columns: from names to rows, lists or arrays or columns of Arrow.
        framework: "pt" or "np", as for ``tokenizer.pad``.
    """
    pad_token_id, inputs = tokenizer.pad_token_id, tokenizer.model_input_names
    own_way = (
        getattr(type(tokenizer), "pad", None) is not PreTrainedTokenizerBase.pad
        or type(tokenizer)._pad is not PreTrainedTokenizerBase._pad
        or inputs[0] != "input_ids"
        or pad_token_id is None  # raises its error
        or "input_ids" not in columns
        or _no_integers(columns.get("attention_mask"))
    )
    if own_way:
        return pad_without_fast_tokenizer_warning(
            tokenizer,
            {name: as_list(column) for name, column in columns.items()},
            return_tensors=framework,
            pad_to_multiple_of=pad_to_multiple_of,
        )
    values = {
        "input_ids": pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "special_tokens_mask": 1,
        "attention_mask": 0,
    }
    batch = pad_batch(
        {name: column for name, column in columns.items() if name in values},
        padding_values=values,
        padding_side=tokenizer.padding_side,
        pad_to_multiple_of=pad_to_multiple_of,
        attention_mask="attention_mask" in inputs,
    )
    if framework == "pt" and columns.keys() <= values.keys():
        return BatchEncoding(batch)
    padded = {k: v if framework == "pt" else v.numpy() for k, v in batch.items()}
    others = {name: as_list(v) for name, v in columns.items() if name not in values}
    if others and not isinstance(columns["input_ids"][0], (list, tuple)):
        others = to_py_obj(others)  # as ``pad`` does where the rows are arrays
    padded |= BatchEncoding(others, tensor_type=framework)
    return BatchEncoding({name: padded[name] for name in {**columns, **padded}})


def pad_sequences(
    rows: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    pad_to_multiple_of: int | None,
    framework: str,
) -> Any:
    """Pad plain rows of ids; int32 rows stay int32."""
    as_torch = framework == "pt"
    if tokenizer.pad_token is None:  # fine for rows of one length, else its error
        pad = _torch_collate_batch if as_torch else _numpy_collate_batch
        return pad(rows, tokenizer, pad_to_multiple_of=pad_to_multiple_of)
    kinds = (Tensor,) if as_torch else (np.ndarray, Tensor)
    narrow_rows = all(
        isinstance(row, kinds) and row.dtype in (torch.int32, np.int32) for row in rows
    )
    ids = pad_rows(
        rows,
        padding_value=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
        pad_to_multiple_of=pad_to_multiple_of,
        dtype=torch.int32 if narrow_rows else torch.int64,
    )
    return ids if as_torch else ids.numpy()


def as_list(column: Any) -> list[Any]:
    """Return a column as a list of rows, an Arrow column as Python objects."""
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)


def _no_integers(attention_mask: Any) -> bool:
    """Return whether the rows of an attention mask are matrices, floats or booleans."""
    if attention_mask is None or hasattr(attention_mask, "to_pylist"):
        return False
    row: Any = next((row for row in attention_mask if hasattr(row, "__len__") and len(row)), ())
    if isinstance(row, np.ndarray):
        return row.ndim > 1 or row.dtype.kind not in "iu"
    if hasattr(row, "dtype"):
        return row.ndim > 1 or not str(row.dtype).startswith(
            ("int", "uint", "torch.int", "torch.u")
        )
    return any(isinstance(value, (bool, float, list, tuple)) for value in row[:1])
