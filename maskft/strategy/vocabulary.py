"""What masking needs of a tokenizer: which ids may be masked, and which begin a word."""

from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from maskft.strategy.word_marks import WordMarks

LARGEST = 1 << 24  # ids: far more than any vocabulary has, and 16 MB of a table


class Vocabulary:
    """Hold a tokenizer's tables on a device.

    Args:
        tokenizer, device: whose tables, and where.
        size: ``len(tokenizer)``.
        special_ids: the tokenizer's ``all_special_ids``.
        replacement_ids: what random replacements are drawn from. None: [0, size), as Transformers
            does; "ordinary": the tokenizer's ids that are not special; or ids.

    Attributes:
        made_of: the arguments; other ones need other tables.
        known: how many ids the tokenizer knows: max(V, highest id + 1).
        maskable: bool [known or more], false for the special tokens.
        words: where words begin and end, ``maskft.strategy.word_marks.WordMarks``.
        replacements: int64 [n]; None where those are [0, V) and the mask token is among them.
    """

    def __init__(
        self,
        tokenizer: Any,
        device: torch.device,
        size: int,
        special_ids: tuple[int, ...],
        replacement_ids: str | tuple[int, ...] | None = None,
    ) -> None:
        self.made_of = (tokenizer, device, size, special_ids, replacement_ids)
        ids = sorted(set(tokenizer.get_vocab().values()))
        self.known = max(size, ids[-1] + 1 if ids else 0)
        maskable = torch.ones(self.known, dtype=torch.bool)
        maskable[torch.tensor(special_ids, dtype=torch.int64)] = False
        self.maskable = maskable.to(device)
        if replacement_ids == "ordinary":
            special = set(special_ids)
            replacement_ids = tuple(i for i in ids if i not in special)
        elif replacement_ids is None and tokenizer.mask_token_id >= size:
            replacement_ids = tuple(range(size))
        self.replacements = (
            None if replacement_ids is None else torch.tensor(replacement_ids, device=device)
        )

    def cover(self, highest: int) -> str:
        """Lengthen the tables to the id ``highest``, and return a warning about it.

        The new ids are ordinary tokens, and each is a word.

        Raises:
            ValueError: no vocabulary has such an id.
        """
        if highest >= LARGEST:
            raise ValueError(
                f"input_ids hold {highest}, and the tokenizer knows {self.known} ids: were the "
                "rows made by another tokenizer, or are they not ids at all?"
            )
        missing = highest + 1 - self.maskable.numel()
        if missing > 0:
            self.maskable = functional.pad(self.maskable, (0, missing), value=True)
            vars(self).pop("words", None)
        return (
            f"input_ids hold {highest}, and the tokenizer knows {self.known} ids: the others are "
            "masked like ordinary tokens, as Transformers does. If the model's embeddings have no "
            "such rows, the ids come from another tokenizer"
        )

    @cached_property
    def words(self) -> WordMarks:
        tokenizer, device, *_ = self.made_of
        marks = WordMarks(tokenizer, device)
        marks.cover(self.maskable.numel())
        return marks
