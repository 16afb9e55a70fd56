"""Vectorised masking for masked-language-model training: the same mask bits on every backend.

Importing this package imports torch and nothing heavier; Numba and Triton load at the first call
that needs them.
"""

from maskkernels.batch import PackedRows, pad_batch, pad_rows
from maskkernels.denoise import (
    CorruptedRows,
    Denoiser,
    ReplacedTokens,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    infill_text,
    pad_corrupted,
    replace_tokens,
    ul2_denoisers,
)
from maskkernels.loss import LossOutput, linear_cross_entropy, masked_cross_entropy
from maskkernels.mask import MaskedTokens, MaskingPolicy, mask_tokens
from maskkernels.pack import Packing, pack_rows
from maskkernels.rng import hash_rows, random_words, threshold
from maskkernels.tokens import IGNORE_INDEX
from maskkernels.units import (
    ENDS,
    STARTS,
    geometric_lengths,
    rates_from_weights,
    span_units,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)

__all__ = [
    "ENDS",
    "IGNORE_INDEX",
    "STARTS",
    "CorruptedRows",
    "Denoiser",
    "LossOutput",
    "MaskedTokens",
    "MaskingPolicy",
    "PackedRows",
    "Packing",
    "ReplacedTokens",
    "SpanCorruption",
    "TextInfilling",
    "corrupt_spans",
    "corrupted_lengths",
    "geometric_lengths",
    "hash_rows",
    "infill_text",
    "linear_cross_entropy",
    "mask_tokens",
    "masked_cross_entropy",
    "pack_rows",
    "pad_batch",
    "pad_corrupted",
    "pad_rows",
    "random_words",
    "rates_from_weights",
    "replace_tokens",
    "span_units",
    "threshold",
    "ul2_denoisers",
    "units_from_offsets",
    "units_from_word_ids",
    "word_units",
]
__version__ = "0.1.0"
