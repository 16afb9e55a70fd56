"""Number the units that are masked together, for ``mask_tokens(units=...)``."""

from maskkernels.units.api import (
    rates_from_weights,
    span_units,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)
from maskkernels.units.flags import ENDS, STARTS
from maskkernels.units.lengths import LONGEST, geometric_lengths

__all__ = [
    "ENDS",
    "LONGEST",
    "STARTS",
    "geometric_lengths",
    "rates_from_weights",
    "span_units",
    "units_from_offsets",
    "units_from_word_ids",
    "word_units",
]
