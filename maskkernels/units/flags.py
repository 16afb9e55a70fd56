"""Flags of a word table, one entry per id of the vocabulary."""

STARTS = 1  # the token begins a unit
ENDS = 2  # the token after it begins a unit
