"""What masking asks of a tokenizer: which ids may be masked, and which begin a word."""

from functools import cached_property
from typing import Any

import torch

from maskft.strategy.word_marks import WordMarks


class Vocabulary:
    """A tokenizer's tables on a device, as its vocabulary stands now.

    Attributes:
        maskable: bool [V], false for the special tokens.
        words: where words begin and end, ``maskft.strategy.word_marks.WordMarks``.
    """

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        self._tokenizer, self._device = tokenizer, device
        self._tokens = len(tokenizer), tuple(tokenizer.all_special_ids)
        highest = max(tokenizer.get_vocab().values(), default=-1)
        maskable = torch.ones(max(len(tokenizer), highest + 1), dtype=torch.bool)
        maskable[torch.tensor(tokenizer.all_special_ids)] = False
        self.maskable = maskable.to(device)

    @cached_property
    def words(self) -> WordMarks:
        return WordMarks(self._tokenizer, self._device)

    def fits(self, tokenizer: Any, device: torch.device) -> bool:
        """These are the tables of ``tokenizer`` still: it has got no other tokens."""
        return (
            self._tokenizer is tokenizer
            and self._device == device
            and self._tokens == (len(tokenizer), tuple(tokenizer.all_special_ids))
        )
