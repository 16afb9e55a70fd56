"""What happens to a token: the numbers that every backend uses."""

NONE = 0  # not selected: kept, without a label
MASK = 1  # becomes the mask token
RANDOM = 2  # becomes a random id
KEEP = 3  # keeps its id, and is labelled
