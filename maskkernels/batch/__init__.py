"""Rows to a padded batch, without Python code per token."""

from maskkernels.batch.api import pad_batch, pad_rows, table_columns
from maskkernels.batch.rows import flatten_rows

__all__ = ["flatten_rows", "pad_batch", "pad_rows", "table_columns"]
