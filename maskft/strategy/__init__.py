"""Masking strategies: which tokens are masked together, and how often.

A strategy looks at a batch of tokens and answers with a ``Plan``: a unit number for each token, and
rates where they are not all the same. ``maskkernels.mask_tokens`` does the rest. Your own is a
function of a few lines:

    def split_words(tokens):
        words = tokens.words()
        several = (words == words.roll(1, 1)) | (words == words.roll(-1, 1))
        return torch.where(several, words, -1)  # words of one piece are never masked

    DataCollatorForLanguageModeling(tokenizer, strategy=split_words)
"""

from maskft.strategy.columns import ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN
from maskft.strategy.diffusion import Diffusion
from maskft.strategy.plan import Plan, Strategy, Tokens
from maskft.strategy.strategies import (
    STRATEGIES,
    Entity,
    FromColumns,
    FromFunction,
    Keyword,
    NGram,
    Random,
    Span,
    WholeWord,
    find_strategy,
)

__all__ = [
    "ENTITY_COLUMN",
    "STRATEGIES",
    "WEIGHT_COLUMN",
    "WORD_COLUMN",
    "Diffusion",
    "Entity",
    "FromColumns",
    "FromFunction",
    "Keyword",
    "NGram",
    "Plan",
    "Random",
    "Span",
    "Strategy",
    "Tokens",
    "WholeWord",
    "find_strategy",
]
