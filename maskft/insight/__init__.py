"""Show what a masked model knows and what it relies on: score, compare, explain."""
