"""The unit functions as PyTorch's dispatcher sees them: one op each."""

from typing import Any

import torch
from torch import Tensor

from maskkernels.backend import define_op
from maskkernels.units.lengths import threshold_table


def _cpu(name: str, *args: Any) -> Tensor:
    from maskkernels.units import _numba

    return getattr(_numba, name)(*args)


def _gpu(name: str, *args: Any) -> Tensor:
    from maskkernels.units import _triton

    return getattr(_triton, name)(*args)


def _as_they_are(*args: Any) -> tuple[Any, ...]:
    return args


def _with_tables(units: Tensor, whole: list[int], cut: list[int], *others: Any) -> tuple[Any, ...]:
    """Thresholds travel as numbers, so that a trace holds them and no device has to be waited for.

    A kernel takes them as tables on its device, which are kept there.
    """
    tables = (threshold_table(tuple(thresholds), units.device) for thresholds in (whole, cut))
    return units, *tables, *others


def _define(name: str, schema: str, dtype: torch.dtype, prepare: Any = _as_they_are) -> Any:
    """An op whose result has the shape of its first argument."""
    return define_op(
        name,
        schema + " -> Tensor",
        cpu=lambda *args: _cpu(name, *prepare(*args)),
        cuda=lambda *args: _gpu(name, *prepare(*args)),
        fake=lambda like, *_: like.new_empty(like.shape, dtype=dtype),
    )


_OPS = {
    name: _define(
        name,
        f"(Tensor input_ids, Tensor {beside}, Tensor? cu_seqlens, Tensor? attention_mask, "
        "Tensor? special_tokens_mask, Tensor? maskable, Tensor? groups)",
        torch.int64,
    )
    for name, beside in (
        ("word_units", "table"),
        ("units_from_offsets", "offset_mapping"),
        ("units_from_word_ids", "word_ids"),
    )
}
_OPS["span_units"] = _define(
    "span_units",
    "(Tensor units, int[] whole, int[] cut, Tensor sample_ids, Tensor? cu_seqlens, SymInt seed, "
    "SymInt epoch)",
    torch.int64,
    _with_tables,
)
_OPS["rates_from_weights"] = _define(
    "rates_from_weights",
    "(Tensor weights, Tensor units, float rate, Tensor? cu_seqlens)",
    torch.float64,
)


def call(name: str, *args: Any) -> Tensor:
    """The op ``name``, on the device of its tensors."""
    return _OPS[name](*args)
