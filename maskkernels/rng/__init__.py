"""The random contract: a 32-bit word for every (seed, epoch, stream, sample, index)."""

from maskkernels.rng.api import hash_rows, random_words, threshold
from maskkernels.rng.streams import ROW, TIME, TOKEN

__all__ = ["ROW", "TIME", "TOKEN", "hash_rows", "random_words", "threshold"]
