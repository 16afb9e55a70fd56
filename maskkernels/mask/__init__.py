"""Tokens to a masked batch: which tokens are predicted, and what the model sees in their place."""

from maskkernels.mask.api import MaskedTokens, mask_tokens
from maskkernels.mask.policy import SELECTIONS, MaskingPolicy

__all__ = ["SELECTIONS", "MaskedTokens", "MaskingPolicy", "mask_tokens"]
