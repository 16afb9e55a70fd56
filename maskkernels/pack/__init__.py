"""Pack rows into full blocks."""

from maskkernels.pack.api import Packing, pack_rows

__all__ = ["Packing", "pack_rows"]
