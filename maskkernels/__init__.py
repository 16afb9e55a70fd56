"""Vectorised masking for masked-language-model training: the same mask bits on every backend.

Importing this package imports torch and nothing heavier; Numba and Triton load at the first call
that needs them.
"""

from maskkernels.batch import flatten_rows, pad_batch, pad_rows, table_columns
from maskkernels.mask import MaskedTokens, MaskingPolicy, mask_tokens
from maskkernels.rng import hash_rows, random_words, threshold
from maskkernels.units import (
    geometric_lengths,
    rates_from_weights,
    span_units,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)

__all__ = [
    "MaskedTokens",
    "MaskingPolicy",
    "flatten_rows",
    "geometric_lengths",
    "hash_rows",
    "mask_tokens",
    "pad_batch",
    "pad_rows",
    "random_words",
    "rates_from_weights",
    "span_units",
    "table_columns",
    "threshold",
    "units_from_offsets",
    "units_from_word_ids",
    "word_units",
]
__version__ = "0.1.0"
