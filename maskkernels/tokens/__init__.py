"""What every room does to tokens: check them, find where each one is, say which may be masked."""

from maskkernels.tokens.checks import as_int, check_flag, check_number

__all__ = ["IGNORE_INDEX", "as_int", "check_flag", "check_number"]

IGNORE_INDEX = -100  # the label of a token that is not predicted; Transformers knows no other
