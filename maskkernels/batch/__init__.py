"""Turn rows into a padded batch, without Python code per token."""

from maskkernels.batch.api import pad_batch, pad_rows, table_columns
from maskkernels.batch.rows import PackedRows, flatten_rows

__all__ = ["PackedRows", "flatten_rows", "pad_batch", "pad_rows", "table_columns"]
