"""Tokens to the units that are masked together: numbers per row, for ``mask_tokens(units=...)``."""

from maskkernels.units.api import units_from_offsets, units_from_word_ids, word_units
from maskkernels.units.flags import ENDS, STARTS

__all__ = ["ENDS", "STARTS", "units_from_offsets", "units_from_word_ids", "word_units"]
