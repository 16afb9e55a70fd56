"""Examples to masked batches: pad, plan, mask, and say where the labels are."""
