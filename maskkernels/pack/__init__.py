"""Rows into blocks: which rows go together so that blocks are full."""

from maskkernels.pack.api import PackedRows, pack_rows

__all__ = ["PackedRows", "pack_rows"]
