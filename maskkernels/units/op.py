"""The unit functions as ops. On the CPU an op would be a tenth of the time of a batch: direct."""

from typing import Any

import torch
from torch import Tensor

from maskkernels.backend import Op
from maskkernels.tokens.checks import check_bounds

_WHERE = dict.fromkeys(
    ("cu_seqlens", "attention_mask", "special_tokens_mask", "maskable", "groups"), Tensor | None
)


def _define(name: str, dtype: torch.dtype, arguments: dict[str, Any]) -> Op:
    """Define an op whose result has the shape of its first argument."""
    bounds = list(arguments).index("cu_seqlens")
    return Op(
        "units",
        name,
        fake=lambda like, *_: like.new_empty(like.shape, dtype=dtype),
        arguments=arguments,
        check=lambda *args: check_bounds(args[0], args[bounds]),
        direct=True,
    )


OPS = {
    name: _define(name, torch.int64, {"input_ids": Tensor, read: Tensor, **_WHERE})
    for name, read in (
        ("word_units", "table"),
        ("units_from_offsets", "offset_mapping"),
        ("units_from_word_ids", "word_ids"),
    )
}
OPS["span_units"] = _define(
    "span_units",
    torch.int64,
    {
        "units": Tensor, "whole": list[int], "cut": list[int], "sample_ids": Tensor,
        "cu_seqlens": Tensor | None, "seed": int, "epoch": int,
    },
)  # fmt: skip
OPS["rates_from_weights"] = _define(
    "rates_from_weights",
    torch.float64,
    {"weights": Tensor, "units": Tensor, "rate": float, "cu_seqlens": Tensor | None},
)
