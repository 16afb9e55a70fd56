"""Classify texts by the word that a masked language model puts in a template."""

from maskft.prompt.template import Template

__all__ = ["Template"]
