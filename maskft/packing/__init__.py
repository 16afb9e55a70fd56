"""Rows end to end without padding: the collator, the sampler, and how rows are kept apart."""
