"""The names of the columns that ``maskft.annotate`` writes and strategies read."""

ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN = "entity_ids", "keyword_weights", "word_ids"
