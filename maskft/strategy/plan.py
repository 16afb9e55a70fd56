"""What a strategy is: it sees a batch as ``Tokens`` and answers with a ``Plan``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskft.strategy.word_marks import WordMarks
from maskkernels import hash_rows, units_from_offsets, units_from_word_ids, word_units
from maskkernels.units import STARTS


@dataclass(frozen=True)
class Plan:
    """Say what is masked together, and how often: arguments of ``maskkernels.mask_tokens``.

    Attributes:
        units: int64 [B, T], numbers from 0 in each sample, -1: never masked. None: single tokens.
        rates: float [B, T], the rate of each token or of its unit; under an exact budget that at a
            unit's first token that may be masked. None: the collator's rate.
        unit_rates: float [B, U], the rate of each unit, in place of ``rates``.
        label_weights: float [B, T], what the loss of each token is multiplied by if it is selected.
            The batch gets a column ``label_weights``, 0 where nothing is labelled.
        num_items: int64 [B], how much each row counts in the number that the loss is divided by.
            The batch gets a column ``num_items``. None: the labelled tokens count.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling, Plan
        >>> def rare_words(tokens):
        ...     rates = 0.05 + 0.2 * (tokens.input_ids > 30)  # if ids are by frequency
        ...     return Plan(units=tokens.words(), rates=rates)
        >>> collator = DataCollatorForLanguageModeling(tokenizer, strategy=rare_words, seed=1)
        >>> bool((collator(rows)["labels"] != -100).any())
        True
    """

    units: Tensor | None = None
    rates: Tensor | None = None
    unit_rates: Tensor | None = None
    label_weights: Tensor | None = None
    num_items: Tensor | None = None


@dataclass
class Tokens:
    """Show a strategy a padded or packed batch.

    Attributes:
        input_ids: int32 or int64 [B, T]; flat [N] with ``cu_seqlens``, and so is what follows.
        rate: the collator's rate at this moment.
        seed, epoch: of the random contract.
        columns: the columns that the strategy names, padded to [B, T].
        attention_mask, special_tokens_mask: [B, T] or None; ``maskable``: bool [V].
        offset_mapping [B, T, 2], word_ids [B, T]: as the examples brought them, or None.

    Examples:
        >>> import torch
        >>> from maskft import DataCollatorForLanguageModeling
        >>> def split_words(tokens):
        ...     words = tokens.words()
        ...     several = (words == words.roll(1, 1)) | (words == words.roll(-1, 1))
        ...     return torch.where(several, words, -1)  # words of one piece are never masked
        >>> batch = DataCollatorForLanguageModeling(tokenizer, strategy=split_words, seed=1)(rows)
        >>> sorted(batch)
        ['attention_mask', 'input_ids', 'labels', 'token_type_ids']
    """

    input_ids: Tensor
    rate: float
    seed: int
    epoch: int
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    attention_mask: Tensor | None = None
    special_tokens_mask: Tensor | None = None
    maskable: Tensor | None = None
    offset_mapping: Tensor | None = None
    word_ids: Tensor | None = None
    word_table: Callable[[], WordMarks] | None = None
    given_sample_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None

    def sample_ids(self) -> Tensor:
        """Return int64 [B], the id of each row: a hash of its tokens if none was given."""
        if self.given_sample_ids is None:
            self.given_sample_ids = hash_rows(
                self.input_ids, cu_seqlens=self.cu_seqlens, attention_mask=self.attention_mask
            )
        return self.given_sample_ids

    def words(self, groups: Tensor | None = None) -> Tensor:
        """Return int64 [B, T], the word of each token that may be masked, -1 elsewhere.

        From ``word_ids`` where the examples have them, else from the vocabulary; from
        ``offset_mapping`` only where that has no word marks. So words do not depend on whether the
        examples carry offsets, which some tokenizers begin at the space before a word. Neighbours
        with the same number in ``groups`` (int64 [B, T], negative for none) are one unit, whatever
        their words.
        """
        limits = {**self._limits(), "groups": groups}
        if self.word_ids is not None:
            return units_from_word_ids(self.input_ids, self.word_ids, **limits)
        marks = None if self.word_table is None else self.word_table()
        if marks is not None and (marks.known or self.offset_mapping is None):
            units = marks.units(self.input_ids, **limits)
        elif self.offset_mapping is not None:
            units = units_from_offsets(self.input_ids, self.offset_mapping, **limits)
        else:
            raise ValueError("these tokens know no words: no offsets, word ids or vocabulary")
        return units if marks is None else marks.watch(units, self.cu_seqlens)

    def singles(self) -> Tensor:
        """Return int64 [B, T], a number for each token that may be masked, -1 elsewhere."""
        size = 1 if self.maskable is None else self.maskable.numel()
        table = torch.full((size,), STARTS, dtype=torch.uint8, device=self.input_ids.device)
        return word_units(self.input_ids, table, **self._limits())

    def may_mask(self) -> Tensor:
        """Return bool [B, T], which tokens may be masked."""
        return self.singles() >= 0

    def of_rows(self, values: Tensor) -> Tensor:
        """Return [B, T], the value of each token's row, from ``values`` [B]."""
        if self.cu_seqlens is None:
            return values[:, None].expand(self.input_ids.shape)
        lengths = self.cu_seqlens.diff()
        return values.repeat_interleave(lengths, output_size=self.input_ids.numel())

    def count(self, tokens: Tensor) -> Tensor:
        """Return int64 [B], how many of each row's tokens are true in bool ``tokens`` [B, T]."""
        if self.cu_seqlens is None:
            return tokens.sum(1)
        before = torch.nn.functional.pad(tokens.cumsum(0), (1, 0))
        return before[self.cu_seqlens.long()].diff()

    def grouped(self, numbers: Tensor) -> Tensor:
        """Return int64 [B, T], units that begin where ``numbers`` change; -1 where negative."""
        return units_from_word_ids(self.input_ids, numbers.long(), **self._limits())

    def _limits(self) -> dict[str, Any]:
        return {
            "cu_seqlens": self.cu_seqlens,
            "attention_mask": self.attention_mask,
            "special_tokens_mask": self.special_tokens_mask,
            "maskable": self.maskable,
        }


class Strategy:
    """Plan what is masked together; the base class of all strategies.

    Attributes:
        columns: the columns of one number a token that it reads, each with its value for padding:
            an int where the column holds integers, a float where it holds floats.
        replacement: "unit" where one action (mask, random or keep) goes for a whole unit.
        reads_sample_ids: whether the plan itself is random and reads ``tokens.sample_ids()``. They
            are then computed once for the plan and the masks.
        shares: (mask, random), the shares of what replaces a selected token; None: the collator's.

    Examples:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from maskft import DataCollatorForLanguageModeling, Plan, Strategy
        >>> @dataclass(frozen=True)
        ... class LaterWords(Strategy):
        ...     def plan(self, tokens):
        ...         words = tokens.words()
        ...         return Plan(units=torch.where(words < 2, -1, words))  # never the first two
        >>> collator = DataCollatorForLanguageModeling(tokenizer, strategy=LaterWords(), seed=1)
        >>> sorted(collator(rows))
        ['attention_mask', 'input_ids', 'labels', 'token_type_ids']
    """

    columns: Mapping[str, int | float] = {}
    replacement: str = "token"
    reads_sample_ids: bool = False
    shares: tuple[float, float] | None = None

    def plan(self, tokens: Tokens) -> Plan:
        raise NotImplementedError

    def for_evaluation(self, number: int, passes: int) -> "Strategy":
        """Return the strategy of pass ``number`` of so many over the evaluation rows."""
        return self
