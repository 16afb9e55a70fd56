"""Train masked language models for tasks: examples to rows, a collator, predictions and scores."""
