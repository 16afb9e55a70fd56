"""From examples to a masked batch: Transformers' collator, with masks from maskkernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor

from maskft.collate.columns import MaskingColumns, UnmaskedBatch, highest_id
from maskft.collate.labels import label_places, labels_of_next_tokens, weighing_columns
from maskft.collate.options import check_options, noting_shares, replacements
from maskft.collate.padding import Padding, pad_columns, pad_sequences
from maskft.collate.randomness import SampleDraws
from maskft.strategy import (
    STRATEGIES,
    Diffusion,
    Plan,
    Random,
    Strategy,
    Tokens,
    WholeWord,
    find_strategy,
)
from maskft.strategy.schedule import Progress
from maskft.strategy.vocabulary import Vocabulary
from maskkernels import MaskingPolicy, hash_rows, mask_tokens
from maskkernels.mask import SELECTIONS

__all__ = ["RNGS", "STRATEGIES", "DataCollatorForLanguageModeling"]

RNGS = ("stream", "sample", "hf")
_policy = lru_cache(maxsize=8, typed=True)(MaskingPolicy)  # checks its fields for 10 us


@dataclass
class DataCollatorForLanguageModeling(SampleDraws, transformers.DataCollatorForLanguageModeling):
    """Pad and mask examples: a drop-in replacement for Transformers' collator of the same name.

    ``mask(prepare(examples))`` is all that a call does. Arguments, defaults, outputs, warnings and
    errors are those of the parent class. The masks have the same distribution and come from
    maskkernels. The arguments below are new and keyword-only.

    Args:
        rng: where the masks come from.
            "stream" (default): fresh masks at every call, from torch's global generator without a
            ``seed`` and from the collator's own stream with one. Every rank of torch.distributed,
            worker and pass over the data gets other masks; with a seed, a run that is repeated with
            as many ranks and workers repeats them.
            "sample": each row's masks depend on (seed, epoch, row) alone, whatever the batch, the
            order, the padding, the workers or the ranks; a missing ``seed`` counts as 0. Call
            ``set_epoch`` at every epoch (``maskft.attach`` does it for a Trainer).
            "hf": bit for bit the masks that Transformers' own collator draws with this seed.
        strategy: what is masked together, and how often: "random" (single tokens), "whole_word",
            "span", "ngram", "entity", "keyword", "diffusion" (docs/diffusion.md); a strategy from
            ``maskft.strategy`` with its own options; or your own function (see there). Words are
            found from a ``word_ids`` column where the examples have one, else from the tokenizer's
            vocabulary; from ``offset_mapping`` only where the vocabulary has no word marks.
            Unlike the parent's ``whole_word_mask=True``, which turns ``mask_replace_prob`` into 1
            with a warning, "whole_word" keeps the shares it is given.
        selection: "bernoulli" masks each token (or unit) on its own, "budget" exactly
            round(rate * maskable) of them in every row, or the rounded sum of the rates that the
            strategy gives them.
        at_least_one: with selection="budget", mask one where the rounded number is 0.
        replacement: "token" chooses mask, random or keep for each token, "unit" once for all tokens
            of a unit. None: "unit" for spans, else "token".
        replacement_ids: the ids that random replacements are drawn from. None: all of the
            tokenizer, special ones too, as Transformers does; "ordinary": all but the special ones;
            or a sequence of ids.
        mask_only: mask only tokens of these token types (an int or several), or tokens where the
            column of this name is not 0, such as the question of a pair.
        schedule: maps progress in [0, 1] to a rate, as ``maskft.RateSchedule`` does. ``attach``
            reports progress; without it, and in evaluation, the rate is ``mlm_probability``.
        sample_id_column: with rng="sample", the name of a column of integers that identify the
            rows. None: a hash of the row's tokens, so equal rows get equal masks.
        label_positions: add ``label_positions`` to the batch, int64 [B, k]: the places of labelled
            tokens in each row. Only a model with ``fuse_loss`` takes it, and then need not search
            for them on a GPU. True: k is the most labels of any row. A number: always that many a
            row, -1 after the last, for static shapes (not in evaluation); more labels raise
            ValueError. With "budget" n maskable tokens have round(rate * n), halves rounded up.

    Raises:
        ValueError, TypeError: an argument or an example that does not fit, saying which.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling
        >>> sorted(DataCollatorForLanguageModeling(tokenizer, strategy="span", seed=1)(rows))
        ['attention_mask', 'input_ids', 'labels', 'token_type_ids']
    """

    whole_word_mask: bool = False  # these two again for the type checker, which skips Transformers
    seed: int | None = None
    rng: str = field(default="stream", kw_only=True)
    strategy: str | Strategy | Callable[..., Any] = field(default="random", kw_only=True)
    selection: str = field(default="bernoulli", kw_only=True)
    at_least_one: bool = field(default=False, kw_only=True)
    replacement: str | None = field(default=None, kw_only=True)
    replacement_ids: str | Sequence[int] | None = field(default=None, kw_only=True)
    mask_only: str | int | Sequence[int] | None = field(default=None, kw_only=True)
    schedule: Callable[[float], float] | None = field(default=None, kw_only=True)
    sample_id_column: str | None = field(default=None, kw_only=True)
    label_positions: bool | int = field(default=False, kw_only=True)
    _own_masking: ClassVar[frozenset[str]] = frozenset()  # methods that a subclass defines

    def __post_init__(self) -> None:
        known = {"rng": RNGS, "selection": SELECTIONS, "replacement": (None, "token", "unit")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if self.whole_word_mask:
            self.strategy = "whole_word"
        self._strategy = find_strategy(self.strategy)
        check_options(self, self._strategy)
        self._drawn_from = replacements(self.replacement_ids, self.tokenizer)
        # Where the parent draws the masks, or refuses mlm=False, it must see the strategy too.
        whole_word = isinstance(self._strategy, WholeWord)
        self.whole_word_mask = self.whole_word_mask or (
            whole_word and (self.rng == "hf" or not self.mlm)
        )
        with noting_shares(self):
            super().__post_init__()
        self.whole_word_mask = whole_word
        self._begin_draws()
        self._progress = Progress()
        self._vocabulary: Vocabulary | None = None

    def set_progress(
        self, step: int, steps: int, *, epoch: int = 0, epochs: int = 1, batches_a_step: int = 1
    ) -> None:
        """Report training progress to ``schedule``: the next batch is the first of ``step``.

        From here on each worker counts its own batches, so call this once before each epoch (and
        when resuming), before iterating over the DataLoader, as ``set_epoch``.

        Args:
            step, steps: optimiser steps done, and in total.
            epoch, epochs: epochs done, and in total, for a schedule that changes by epoch.
            batches_a_step: gradient accumulation.
        """
        self._progress.begin(step, steps, epoch, epochs, batches_a_step)

    def required_columns(self) -> list[str]:
        """Return the columns that masking needs and the model does not take."""
        return self._reads().needed()

    def optional_columns(self) -> list[str]:
        """Return the columns that masking reads if the examples have them."""
        return self._reads().welcome()

    def follow(self, other: SampleDraws) -> None:
        """Share the epoch of another collator, and its progress in a schedule."""
        super().follow(other)
        if isinstance(other, DataCollatorForLanguageModeling):
            self._progress = other._progress

    def for_evaluation(self, number: int = 0, passes: int = 1) -> "DataCollatorForLanguageModeling":
        """Return a copy with fixed masks: rng="sample" at an epoch that training never reaches.

        Args:
            number, passes: the pass over the rows, of how many; each has other masks.
        """
        fixed = super().for_evaluation(number)
        fixed._strategy = self._strategy.for_evaluation(number, passes)
        fixed.schedule = None
        if isinstance(self._strategy, Diffusion):  # the bound needs independent draws
            fixed.selection, fixed.at_least_one = "bernoulli", False
        fixed.label_positions = bool(self.label_positions)  # its batches may be larger
        return fixed

    def get_generator(self, seed: int) -> Any:
        if self.rng == "hf" and self.return_tensors == "np":
            return super().get_generator(seed)
        return torch.Generator().manual_seed(seed if seed < 1 << 64 else seed - (1 << 64))

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        return self.mask(self.prepare(examples))

    def numpy_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        return self.mask(self.prepare(examples, "np"))

    def prepare(self, examples: Any, framework: str = "pt") -> UnmaskedBatch:
        """Pad the examples, and collect all that their masks depend on.

        Args:
            examples: what Transformers' collator takes, or a whole table.
            framework: "pt", or "np" for a batch of arrays.
        """
        reads = self._reads()
        taken, columns = reads.take_apart(examples)
        if isinstance(columns, Mapping):
            batch = pad_columns(columns, self.tokenizer, self.pad_to_multiple_of, framework)
        else:
            ids = pad_sequences(columns, self.tokenizer, self.pad_to_multiple_of, framework)
            batch = {"input_ids": ids}
        unmasked = UnmaskedBatch(batch, batch.pop("special_tokens_mask", None))
        if not self.mlm:
            return unmasked
        shape = batch["input_ids"].shape
        padding = Padding(self.tokenizer.padding_side, self.pad_to_multiple_of)
        unmasked.offset_mapping = reads.offsets(taken, shape, padding)
        if self.rng == "hf":
            if self.whole_word_mask and unmasked.offset_mapping is None:
                raise ValueError(
                    "rng='hf' finds whole words from an offset_mapping column, as Transformers "
                    "does, and the examples have none. Tokenize with return_offsets_mapping=True "
                    "(and give Trainer remove_unused_columns=False), or use rng='stream' or "
                    "rng='sample', which need no such column."
                )
            return unmasked
        real = batch.get("attention_mask")
        if real is None or real.ndim != 2:  # none, or a matrix for each row
            rows = columns["input_ids"] if isinstance(columns, Mapping) else columns
            real = padding.real(rows, shape[1])
        unmasked.attention_mask = torch.as_tensor(real)
        unmasked.sample_ids = self._sample_ids(taken)
        reads.add_to(unmasked, taken, padding)
        return unmasked

    def mask(self, unmasked: UnmaskedBatch) -> dict[str, Any]:
        """Plan the masks of a batch, mask it, and add its labels.

        Args:
            unmasked: what ``prepare`` made, on any device; its ``batch`` becomes the result.

        Returns:
            the model's batch: masked input_ids, labels of the same dtype, ``label_positions`` if
            the option is set, ``label_weights`` and ``num_items`` if the plan has them.
        """
        batch = unmasked.batch
        if not self.mlm:
            batch["labels"] = labels_of_next_tokens(
                batch["input_ids"], self.tokenizer.pad_token_id, unmasked.cu_seqlens
            )
            return batch
        self._seed_generator()
        batch["input_ids"], batch["labels"] = self._mask(unmasked)
        if self.label_positions:
            places = label_places(torch.as_tensor(batch["labels"]), self.label_positions)
            batch["label_positions"] = places.numpy() if unmasked.is_numpy else places
        return batch

    def torch_mask_tokens(
        self,
        inputs: Tensor,
        special_tokens_mask: Any | None = None,
        offset_mapping: Any | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask padded ids, as Transformers' method of this name does; both results are new.

        A subclass may replace this method, and ``mask`` then calls it. ``mask`` also calls it for
        rng="hf". Otherwise masks depend on more than these arguments.

        Args:
            inputs: int32 or int64 [B, T].
            special_tokens_mask: [B, T], non-zero where a token must not be masked, in addition to
                the tokenizer's special tokens (with rng="hf" in place of them).
            offset_mapping: [B, T, 2], where each token begins and ends in its text.
        """
        self._seed_generator()
        if self.rng == "hf":
            return super().torch_mask_tokens(inputs.clone(), special_tokens_mask, offset_mapping)
        return self._draw_masks(inputs, UnmaskedBatch({}, special_tokens_mask, offset_mapping))

    def numpy_mask_tokens(
        self,
        inputs: np.ndarray,
        special_tokens_mask: Any | None = None,
        offset_mapping: Any | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask NumPy arrays, as ``torch_mask_tokens`` masks tensors."""
        self._seed_generator()
        if self.rng == "hf":
            return super().numpy_mask_tokens(inputs.copy(), special_tokens_mask, offset_mapping)
        unmasked = UnmaskedBatch({}, special_tokens_mask, offset_mapping)
        input_ids, labels = self._draw_masks(torch.from_numpy(inputs), unmasked)
        return input_ids.numpy(), labels.numpy()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Note which of Transformers' masking methods a subclass replaces: ``mask`` calls those."""
        super().__init_subclass__(**kwargs)
        below = cls.__mro__[: cls.__mro__.index(DataCollatorForLanguageModeling)]
        defined = {name for base in below for name in vars(base)}
        cls._own_masking = frozenset({"torch_mask_tokens", "numpy_mask_tokens"} & defined)

    def _mask(self, unmasked: UnmaskedBatch) -> tuple[Any, Any]:
        """Return (input_ids, labels) of a batch, tensors or arrays as its ids are."""
        ids = unmasked.tokens
        method = "numpy_mask_tokens" if unmasked.is_numpy else "torch_mask_tokens"
        if self.rng == "hf" or method in self._own_masking:
            offsets: Any = unmasked.offset_mapping
            offsets = offsets.numpy() if unmasked.is_numpy and offsets is not None else offsets
            found = getattr(self, method)(ids, unmasked.special_tokens_mask, offsets)
        else:
            found = self._draw_masks(torch.as_tensor(ids), unmasked)
            found = tuple(each.numpy() for each in found) if unmasked.is_numpy else found
        return found if unmasked.cu_seqlens is None else unmasked.packed(*found)

    def _draw_masks(self, ids: Tensor, unmasked: UnmaskedBatch) -> tuple[Tensor, Tensor]:
        """Return new (input_ids, labels): the strategy plans, and maskkernels masks."""
        vocabulary = self._vocabulary_for(ids, unmasked)
        maskable = vocabulary.maskable
        special = None
        if unmasked.special_tokens_mask is not None or unmasked.allowed is not None:
            special = ~maskable[ids.clamp(0, maskable.numel() - 1)]
            if unmasked.special_tokens_mask is not None:
                special |= torch.as_tensor(unmasked.special_tokens_mask) != 0
            if unmasked.allowed is not None:
                special |= ~unmasked.allowed
        limits: dict[str, Any] = {
            "attention_mask": unmasked.attention_mask,
            "special_tokens_mask": special,
            "maskable": maskable,
            "cu_seqlens": unmasked.cu_seqlens,
        }
        rows = (ids if unmasked.cu_seqlens is None else unmasked.cu_seqlens[1:]).shape[0]
        draws = self._draws(rows, unmasked.sample_ids, ids.device)
        if draws["sample_ids"] is None and self._strategy.reads_sample_ids:
            draws["sample_ids"] = hash_rows(
                ids, cu_seqlens=unmasked.cu_seqlens, attention_mask=unmasked.attention_mask
            )
        rate, offsets, plan = self._rate(), unmasked.offset_mapping, Plan()
        if type(self._strategy) is not Random:  # which plans nothing
            tokens = Tokens(
                ids,
                rate,
                draws["seed"],
                draws["epoch"],
                unmasked.columns or {},
                offset_mapping=None if offsets is None else torch.as_tensor(offsets),
                word_ids=unmasked.word_ids,
                word_table=lambda: vocabulary.words,
                given_sample_ids=draws["sample_ids"],
                **limits,
            )
            plan = self._strategy.plan(tokens)
        masked = mask_tokens(
            ids,
            self._masking_policy(rate),
            replacement_ids=vocabulary.replacements,
            units=plan.units,
            rates=plan.rates,
            unit_rates=plan.unit_rates,
            **draws,
            **limits,
        )
        if plan.label_weights is not None or plan.num_items is not None:
            weighing = weighing_columns(plan.label_weights, plan.num_items, masked.labels, rows)
            unmasked.batch.update(unmasked.weighing(weighing))
        return masked.input_ids, masked.labels

    def _reads(self) -> MaskingColumns:
        return MaskingColumns(self._strategy, self.mask_only, self.sample_id_column, self._notices)

    def _seed_generator(self) -> None:
        """Begin the stream of a seed; that of rng="hf" as the parent does."""
        if self.rng != "hf":
            super()._seed_generator()
        elif self.seed is not None and self.generator is None:
            self.create_rng()

    def _rate(self) -> float:
        """Return the rate of the batch that is being made."""
        if self.schedule is None:
            return self.mlm_probability
        done = self._progress.next_batch(by=getattr(self.schedule, "by", "step"))
        return self.mlm_probability if done is None else self.schedule(done)

    def _masking_policy(self, rate: float) -> MaskingPolicy:
        mask_token_id = self.tokenizer.mask_token_id
        own = (self.mask_replace_prob, self.random_replace_prob)
        mask_share, random_share = self._strategy.shares or own
        return _policy(
            mask_token_id=mask_token_id,
            vocab_size=max(len(self.tokenizer), mask_token_id + 1),
            rate=rate,
            mask_share=mask_share,
            random_share=random_share,
            selection=self.selection,
            at_least_one=self.at_least_one,
            replacement=self.replacement or self._strategy.replacement,
        )

    def _vocabulary_for(self, ids: Tensor, unmasked: UnmaskedBatch) -> Vocabulary:
        """Return the tokenizer's tables, rebuilt if its tokens have changed, as long as ids need.

        Embeddings may have more rows than the tokenizer has tokens; Transformers masks their ids.
        """
        tokenizer, special_ids = self.tokenizer, tuple(self.tokenizer.all_special_ids)
        made_of = (tokenizer, ids.device, len(tokenizer), special_ids, self._drawn_from)
        if self._vocabulary is None or self._vocabulary.made_of != made_of:
            self._vocabulary = Vocabulary(*made_of)
        vocabulary, highest = self._vocabulary, unmasked.highest_id
        if ids.device.type == "cpu":
            highest = highest_id(ids, unmasked.attention_mask)
        if highest is not None and highest >= vocabulary.known:
            self._notices.warn("unknown ids", vocabulary.cover(highest))
        return vocabulary
