"""Vectorised masking for masked-language-model training: the same mask bits on every backend.

Importing this package imports torch and nothing heavier; Numba and Triton load at the first call
that needs them.
"""

from maskkernels.mask import MaskedTokens, MaskingPolicy, mask_tokens
from maskkernels.rng import hash_rows, random_words, threshold

__all__ = [
    "MaskedTokens",
    "MaskingPolicy",
    "hash_rows",
    "mask_tokens",
    "random_words",
    "threshold",
]
__version__ = "0.1.0"
