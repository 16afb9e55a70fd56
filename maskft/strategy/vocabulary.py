"""What masking needs of a tokenizer: which ids may be masked, and which begin a word."""

from functools import cached_property
from typing import Any

import torch

from maskft.strategy.word_marks import WordMarks


class Vocabulary:
    """Hold a tokenizer's tables on a device.

    Args:
        tokenizer, device: whose tables, and where.
        size: ``len(tokenizer)``.
        special_ids: the tokenizer's ``all_special_ids``.

    Attributes:
        made_of: the arguments; other ones need other tables.
        maskable: bool [V], false for the special tokens.
        words: where words begin and end, ``maskft.strategy.word_marks.WordMarks``.
    """

    def __init__(
        self, tokenizer: Any, device: torch.device, size: int, special_ids: tuple[int, ...]
    ) -> None:
        self.made_of = (tokenizer, device, size, special_ids)
        highest = max(tokenizer.get_vocab().values(), default=-1)
        maskable = torch.ones(max(size, highest + 1), dtype=torch.bool)
        maskable[torch.tensor(special_ids, dtype=torch.int64)] = False
        self.maskable = maskable.to(device)

    @cached_property
    def words(self) -> WordMarks:
        tokenizer, device, *_ = self.made_of
        return WordMarks(tokenizer, device)
