"""What a table over the vocabulary says about each token."""

STARTS = 1  # the token begins a unit
ENDS = 2  # the token after it begins a unit
