"""What every room does to tokens: check them, find where each one is, say which may be masked."""

IGNORE_INDEX = -100  # the label of a token that is not predicted; Transformers knows no other
