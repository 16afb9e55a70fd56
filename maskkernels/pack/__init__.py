"""Rows into blocks: which rows go together so that blocks are full."""

from maskkernels.pack.api import Packing, pack_rows

__all__ = ["Packing", "pack_rows"]
