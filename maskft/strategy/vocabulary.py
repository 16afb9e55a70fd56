"""What masking asks of a tokenizer: which ids may be masked, and which begin a word."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskft.strategy.words import word_table


class Vocabulary:
    """A tokenizer's tables on a device, as its vocabulary stands now.

    Attributes:
        maskable: bool [V], false for the special tokens.
        words: uint8 [V], ``maskft.strategy.words.word_table``.
    """

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        self._tokenizer, self._device = tokenizer, device
        self._tokens = len(tokenizer), tuple(tokenizer.all_special_ids)
        highest = max(tokenizer.get_vocab().values(), default=-1)
        maskable = torch.ones(max(len(tokenizer), highest + 1), dtype=torch.bool)
        maskable[torch.tensor(tokenizer.all_special_ids)] = False
        self.maskable = maskable.to(device)

    @cached_property
    def words(self) -> Tensor:
        return word_table(self._tokenizer).to(self._device)

    def fits(self, tokenizer: Any, device: torch.device) -> bool:
        """These are the tables of ``tokenizer`` still: it has got no other tokens."""
        return (
            self._tokenizer is tokenizer
            and self._device == device
            and self._tokens == (len(tokenizer), tuple(tokenizer.all_special_ids))
        )
