"""The unit functions as PyTorch's dispatcher sees them: one op each."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from maskkernels.backend import define_op, numbers_on


def _cpu(name: str, *args: Any) -> Tensor:
    from maskkernels.units import _numba

    return getattr(_numba, name)(*_prepared(name, *args))


def _gpu(name: str, *args: Any) -> Tensor:
    from maskkernels.units import _triton

    return getattr(_triton, name)(*_prepared(name, *args))


def _prepared(name: str, *args: Any) -> tuple[Any, ...]:
    """Thresholds of lengths as tables on the device, which are kept there.

    They travel as numbers, so that a trace holds them and no device has to be waited for.
    """
    if name != "span_units":
        return args
    units, whole, cut, *others = args
    tables = (numbers_on(units.device, tuple(thresholds)) for thresholds in (whole, cut))
    return units, *tables, *others


def _define(name: str, schema: str, dtype: torch.dtype) -> Any:
    """An op whose result has the shape of its first argument."""
    return define_op(
        name,
        schema + " -> Tensor",
        cpu=partial(_cpu, name),
        cuda=partial(_gpu, name),
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
)
_OPS["rates_from_weights"] = _define(
    "rates_from_weights",
    "(Tensor weights, Tensor units, float rate, Tensor? cu_seqlens)",
    torch.float64,
)


def call(name: str, *args: Any) -> Tensor:
    """The function ``name`` on the device of its tensors.

    As an op on a GPU and in a trace. On the CPU the op would be a tenth of the time of a batch.
    """
    if args[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return _cpu(name, *args)
    return _OPS[name](*args)
