"""Denoising: replace spans of rows by sentinels or masks, which changes the rows' lengths.

Every result is a pure function of (seed, epoch, sample, position) under the contract of
``maskkernels.rng``, so it does not depend on the batch, its order, its padding or the workers.
The streams DENOISER to SENTENCE of ``rng/streams.py`` are drawn from. LENGTH at index n, the number
of tokens that may be masked, says which span the first length goes to.

A choice of k among m things, each choice as likely as any other, takes k words (Floyd's algorithm):
for step i = 0, 1..., with j = m - k + i, take (word i * (j + 1)) >> 32, or j if that is taken.
"""

from maskkernels.denoise.api import (
    CorruptedRows,
    ReplacedTokens,
    corrupt_spans,
    corrupted_lengths,
    infill_text,
    pad_corrupted,
    replace_tokens,
)
from maskkernels.denoise.policy import Denoiser, SpanCorruption, TextInfilling, ul2_denoisers

__all__ = [
    "CorruptedRows",
    "Denoiser",
    "ReplacedTokens",
    "SpanCorruption",
    "TextInfilling",
    "corrupt_spans",
    "corrupted_lengths",
    "infill_text",
    "pad_corrupted",
    "replace_tokens",
    "ul2_denoisers",
]
