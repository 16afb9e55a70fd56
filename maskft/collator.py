"""Examples to masked batch: Transformers' collator, with masks from maskkernels."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.data.data_collator import (
    _numpy_collate_batch,
    _torch_collate_batch,
    pad_without_fast_tokenizer_warning,
)
from transformers.utils import to_py_obj

from maskft.draws import SampleDraws
from maskft.examples import check_examples, empty_batch, missing_column
from maskft.progress import Progress
from maskft.strategy import (
    ENTITY_COLUMN,
    STRATEGIES,
    WEIGHT_COLUMN,
    Random,
    Strategy,
    Tokens,
    WholeWord,
    find_strategy,
)
from maskft.words import word_table
from maskkernels import MaskingPolicy, mask_tokens, pad_batch, pad_rows, table_columns
from maskkernels.mask.policy import SELECTIONS

__all__ = ["RNGS", "STRATEGIES", "DataCollatorForLanguageModeling"]

RNGS = ("stream", "sample", "hf")
# Columns that neither masking nor the model needs, unless a strategy asks for them
_UNUSED = ("offset_mapping", ENTITY_COLUMN, WEIGHT_COLUMN)


@dataclass
class DataCollatorForLanguageModeling(SampleDraws, transformers.DataCollatorForLanguageModeling):
    """Pad examples and mask them: Transformers' collator of the same name, and drop-in for it.

    Every argument, default, output, warning and error of the parent class holds. The masks follow
    the same law and come from maskkernels. The arguments below are new and keyword-only.

    Args:
        rng: where the masks come from.
            "stream" (default): fresh masks at every call, from torch's global generator without a
            ``seed`` and from the collator's own stream with one.
            "sample": each row's masks depend on (seed, epoch, row) alone, whatever the batch, the
            order, the padding, the workers or the ranks; a missing ``seed`` counts as 0. Call
            ``set_epoch`` at every epoch (``maskft.attach`` does it for a Trainer).
            "hf": bit for bit the masks that Transformers' own collator draws with this seed.
        strategy: what is masked together, and how often: "random" (single tokens), "whole_word",
            "span", "ngram", "entity", "keyword"; a strategy of ``maskft.strategy`` with options of
            its own; or a function of yours (see there). Words are found from ``offset_mapping`` or
            ``word_ids`` columns where the examples have them, else from the tokenizer's vocabulary.
            Unlike the parent's ``whole_word_mask=True``, which turns ``mask_replace_prob`` into 1
            with a warning, "whole_word" keeps the shares it is given.
        selection: "bernoulli" masks each token (or unit) on its own, "budget" exactly
            round(rate * maskable) of them in every row.
        at_least_one: with selection="budget", one where that would be none.
        replacement: "token" chooses mask, random or keep for each token, "unit" once for all tokens
            of a unit. None: "unit" for spans, else "token".
        within: masks nothing but tokens of these token types (an int or several), or those where
            the column of this name is not 0: the question of a pair, the source of a translation.
        schedule: the rate in the course of training: a function from the share of training that is
            done to a rate, as ``maskft.RateSchedule``. ``maskft.attach`` tells the collator where
            training stands; without, and in evaluation, the rate is ``mlm_probability``.
        sample_id_column: with rng="sample", the name of a column of integers that identify the
            rows. None: a hash of the row's tokens, so equal rows get equal masks.
        label_positions: batches have ``label_positions`` too, int64 [R]: where the R labels are in
            the flattened batch. A model with ``fuse_loss`` takes it, and a GPU then need not search
            for them; other models know no such argument.

    Raises:
        ValueError, TypeError: an argument or an example that does not fit, saying which.
    """

    whole_word_mask: bool = False  # these two again for the type checker, which skips Transformers
    seed: int | None = None
    rng: str = field(default="stream", kw_only=True)
    strategy: str | Strategy | Callable[..., Any] = field(default="random", kw_only=True)
    selection: str = field(default="bernoulli", kw_only=True)
    at_least_one: bool = field(default=False, kw_only=True)
    replacement: str | None = field(default=None, kw_only=True)
    within: str | int | Sequence[int] | None = field(default=None, kw_only=True)
    schedule: Callable[[float], float] | None = field(default=None, kw_only=True)
    sample_id_column: str | None = field(default=None, kw_only=True)
    label_positions: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        known = {"rng": RNGS, "selection": SELECTIONS, "replacement": (None, "token", "unit")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if self.whole_word_mask:
            self.strategy = "whole_word"
        self._strategy = find_strategy(self.strategy)
        self._check_options()
        # Where the parent draws the masks, or refuses mlm=False, it must see the strategy too.
        whole_word = isinstance(self._strategy, WholeWord)
        self.whole_word_mask = self.whole_word_mask or (
            whole_word and (self.rng == "hf" or not self.mlm)
        )
        super().__post_init__()
        self.whole_word_mask = whole_word
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            value = getattr(self, name)
            if value is not None and value != value:
                raise ValueError(f"{name} should be between 0 and 1, got NaN.")
        self._begin_draws()
        self._progress = Progress()
        self._tables: tuple[Any, Tensor, Tensor | None] | None = None
        self._policy: tuple[Any, MaskingPolicy] | None = None

    def _check_options(self) -> None:
        """Options that do not go together."""
        own = isinstance(self._strategy, (Random, WholeWord))
        plain = (self.selection, self.replacement, self.within, self.schedule)
        if self.rng == "hf" and not (own and plain == ("bernoulli", None, None, None)):
            raise ValueError(
                "rng='hf' draws what Transformers' collator does: strategy='random' or "
                "'whole_word', without selection, replacement, within or schedule; use "
                "rng='stream' or rng='sample'"
            )
        if self.selection == "budget" and self._strategy.gives_rates:
            raise ValueError(
                f"selection='budget' takes one rate, and the strategy {self._strategy!r} gives "
                "rates of its own; use selection='bernoulli'"
            )
        if self.at_least_one and self.selection != "budget":
            raise ValueError("at_least_one goes with selection='budget'")
        if self.replacement == "unit" and isinstance(self._strategy, Random):
            raise ValueError("replacement='unit' needs a strategy with units, not 'random'")
        if self.within is not None and not isinstance(self.within, str):
            types = [self.within] if isinstance(self.within, int) else list(self.within)
            if not types or not all(isinstance(kind, int) for kind in types):
                raise ValueError(
                    "within must be the name of a column, a token type or several, got "
                    f"{self.within!r}"
                )
        if self.schedule is not None and not callable(self.schedule):
            raise TypeError(
                "schedule must be a function from [0, 1] to a rate, as maskft.RateSchedule, got "
                f"{type(self.schedule).__name__}"
            )

    def set_progress(
        self, step: int, steps: int, *, epoch: int = 0, epochs: int = 1, batches_a_step: int = 1
    ) -> None:
        """Say where training stands, for ``schedule``: the next batch is the first of ``step``.

        The collator counts its batches from here on, each worker its own, so that once at the
        beginning of every epoch (and of a resumed one) is enough: before iterating over the
        DataLoader, as ``set_epoch``.

        Args:
            step, steps: optimiser steps done, and in all.
            epoch, epochs: likewise, for a schedule that changes by epoch.
            batches_a_step: gradient accumulation.
        """
        self._progress.begin(step, steps, epoch, epochs, batches_a_step)

    def columns_read(self) -> list[str]:
        """The columns that masking reads and the model does not know."""
        names = [*self._strategy.columns]
        names += [name for name in (self.sample_id_column, self.within) if isinstance(name, str)]
        return names

    def columns_welcome(self) -> list[str]:
        """The columns that masking reads where the examples have them."""
        return [] if isinstance(self._strategy, Random) else ["word_ids"]

    def for_evaluation(self) -> "DataCollatorForLanguageModeling":
        """A copy with masks that never change: rng="sample" at an epoch training never reaches."""
        fixed = super().for_evaluation()
        fixed.schedule = None
        return fixed

    def get_generator(self, seed: int) -> Any:
        if self.rng == "hf":
            return super().get_generator(seed)
        return torch.Generator().manual_seed(seed)

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        return self._collate(examples, "pt")

    def numpy_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        return self._collate(examples, "np")

    def torch_mask_tokens(
        self,
        inputs: Tensor,
        special_tokens_mask: Any | None = None,
        offset_mapping: Any | None = None,
        *,
        attention_mask: Tensor | None = None,
        word_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
        within: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask a padded or packed batch on its device; returns (input_ids, labels), both new.

        Args:
            inputs: int32 or int64 [B, T]; flat [N] with ``cu_seqlens``, and so are the others.
            special_tokens_mask: [B, T], non-zero where a token must not be masked. None: the
                tokenizer's special tokens must not.
            offset_mapping: [B, T, 2], where each token begins and ends in its text.
            attention_mask: [B, T], non-zero where a token is real. None: all are.
            word_ids: int64 [B, T], the word each token belongs to, -1 for none.
            sample_ids: int64 [B], for rng="sample". None: a hash of each row.
            cu_seqlens: [B + 1]: row b is inputs[cu_seqlens[b]:cu_seqlens[b + 1]].
            columns: the columns that the strategy reads, each [B, T].
            within: bool [B, T]; tokens where it is false are not masked. None: all may be.
        """
        self._seed_generator()
        if self.rng == "hf":
            return super().torch_mask_tokens(inputs.clone(), special_tokens_mask, offset_mapping)
        maskable, words = self._vocabulary(inputs.device)
        special = None if special_tokens_mask is None else torch.as_tensor(special_tokens_mask)
        if within is not None:
            if special is None:
                special = ~maskable[inputs.clamp(0, maskable.numel() - 1)]
            special = (special != 0) | ~within
        beside: dict[str, Any] = {
            "attention_mask": attention_mask,
            "special_tokens_mask": special,
            "maskable": maskable,
            "cu_seqlens": cu_seqlens,
        }
        rows = inputs.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        draws = self._draws(rows, sample_ids, inputs.device)
        rate = self._rate()
        tokens = Tokens(
            inputs,
            rate,
            draws["seed"],
            draws["epoch"],
            columns or {},
            offset_mapping=None if offset_mapping is None else torch.as_tensor(offset_mapping),
            word_ids=word_ids,
            word_table=lambda: self._word_table(inputs.device) if words is None else words,
            given_sample_ids=draws["sample_ids"],
            **beside,
        )
        plan = self._strategy.plan(tokens)
        draws["sample_ids"] = tokens.given_sample_ids
        masked = mask_tokens(
            inputs,
            self._masking_policy(rate),
            units=plan.units,
            rates=plan.rates,
            unit_rates=plan.unit_rates,
            **draws,
            **beside,
        )
        return masked.input_ids, masked.labels

    def numpy_mask_tokens(
        self,
        inputs: np.ndarray,
        special_tokens_mask: Any | None = None,
        offset_mapping: Any | None = None,
        **beside: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``torch_mask_tokens`` for numpy arrays."""
        self._seed_generator()
        if self.rng == "hf":
            return super().numpy_mask_tokens(inputs.copy(), special_tokens_mask, offset_mapping)
        input_ids, labels = DataCollatorForLanguageModeling.torch_mask_tokens(
            self, torch.from_numpy(inputs), special_tokens_mask, offset_mapping, **beside
        )
        return input_ids.numpy(), labels.numpy()

    def _collate(self, examples: Any, framework: str) -> dict[str, Any]:
        as_torch = framework == "pt"
        beside, columns = self._take_apart(examples)
        if isinstance(columns, Mapping):
            batch = self._pad_columns(columns, framework)
        else:
            batch = {"input_ids": self._pad_sequences(columns, as_torch)}
        special_tokens_mask = batch.pop("special_tokens_mask", None)
        inputs = batch["input_ids"]
        if not self.mlm:
            labels = inputs.clone() if as_torch else np.copy(inputs)
            if self.tokenizer.pad_token_id is not None:
                labels[labels == self.tokenizer.pad_token_id] = -100
            batch["labels"] = labels
            return batch
        given = {
            "special_tokens_mask": special_tokens_mask,
            "offset_mapping": self._offsets(beside.get("offset_mapping"), inputs, as_torch),
        }
        name = "torch_mask_tokens" if as_torch else "numpy_mask_tokens"
        if self.rng == "hf":
            if self.whole_word_mask and given["offset_mapping"] is None:
                raise ValueError(
                    "rng='hf' finds whole words from an offset_mapping column, as Transformers "
                    "does, and the examples have none. Tokenize with return_offsets_mapping=True "
                    "(and give Trainer remove_unused_columns=False), or use rng='stream' or "
                    "rng='sample', which need no such column."
                )
        elif getattr(type(self), name) is getattr(DataCollatorForLanguageModeling, name):
            # A subclass that masks in its own way is called as Transformers would call it.
            real = batch.get("attention_mask")
            if real is None or real.ndim != 2:  # none, or a matrix for each row
                rows = columns["input_ids"] if isinstance(columns, Mapping) else columns
                real = self._real(rows, inputs)
            given["attention_mask"] = torch.as_tensor(real)
            given["word_ids"] = self._word_ids(beside.get("word_ids"))
            given["sample_ids"] = self._sample_ids(beside)
            if self._strategy.columns:
                given["columns"] = self._padded(beside, self._strategy.columns, inputs)
            if self.within is not None:
                given["within"] = self._within(beside, batch, inputs)
        batch["input_ids"], batch["labels"] = getattr(self, name)(inputs, **given)
        if self.label_positions:
            found = np.flatnonzero(np.asarray(batch["labels"]) != -100)
            batch["label_positions"] = torch.from_numpy(found) if as_torch else found
        return batch

    def _take_apart(self, examples: Any) -> tuple[dict[str, Any], dict[str, Any] | list[Any]]:
        """(columns that are not for the model, the other columns or plain rows); checks them."""
        table = table_columns(examples)
        if table is not None:
            columns = dict(table)
            if columns and not len(next(iter(columns.values()))):
                raise empty_batch()
        else:
            examples = list(examples)
            check_examples(examples)
            if not isinstance(examples[0], Mapping):
                if self.sample_id_column is not None:
                    raise ValueError(
                        f"sample_id_column={self.sample_id_column!r} needs examples that are "
                        f"mappings, got {type(examples[0]).__name__}"
                    )
                return {}, examples
            columns = self._by_column(examples)
        if isinstance(self._strategy, Random):
            taken = [name for name in _UNUSED if name in columns]
        else:
            taken = [name for name in (*_UNUSED, "word_ids") if name in columns]
        asked = [*self._strategy.columns]
        asked += [self.within] if isinstance(self.within, str) else []
        for name in asked:
            if name not in columns:
                raise missing_column(0, name, columns)
            taken += [] if name in taken else [name]
        for name in taken:
            if "input_ids" not in columns:
                break
            lengths = zip(columns["input_ids"], columns[name], strict=True)
            for i, (ids, entries) in enumerate(lengths):
                if len(ids) != len(entries):
                    raise ValueError(
                        f"example {i} has {len(ids)} input_ids but {len(entries)} entries in "
                        f"{name!r}"
                    )
        if self.sample_id_column is not None:
            if self.sample_id_column not in columns:
                raise missing_column(0, self.sample_id_column, columns)
            taken.append(self.sample_id_column)
        return {name: columns.pop(name) for name in taken}, columns

    def _by_column(self, examples: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = list(examples[0])
        names += [name for name in self.columns_read() if name not in names]
        try:
            return {name: [example[name] for example in examples] for name in names}
        except KeyError:
            for i, example in enumerate(examples):
                for name in names:
                    if name not in example:
                        raise missing_column(i, name, example) from None
            raise

    def _pad_columns(self, columns: dict[str, Any], framework: str) -> dict[str, Any]:
        """What ``tokenizer.pad`` makes of the columns: by itself where it pads in its own way."""
        tokenizer = self.tokenizer
        pad_token_id, inputs = tokenizer.pad_token_id, tokenizer.model_input_names
        own_way = (
            getattr(type(tokenizer), "pad", None) is not PreTrainedTokenizerBase.pad
            or type(tokenizer)._pad is not PreTrainedTokenizerBase._pad
            or inputs[0] != "input_ids"
            or pad_token_id is None  # raises its error
            or "input_ids" not in columns
            or _no_integers(columns.get("attention_mask"))
        )
        if own_way:
            return pad_without_fast_tokenizer_warning(
                tokenizer,
                {name: _as_list(column) for name, column in columns.items()},
                return_tensors=framework,
                pad_to_multiple_of=self.pad_to_multiple_of,
            )
        values = {
            "input_ids": pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
            "attention_mask": 0,
        }
        batch = pad_batch(
            {name: column for name, column in columns.items() if name in values},
            padding_values=values,
            padding_side=tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
            attention_mask="attention_mask" in inputs,
        )
        if framework == "pt" and columns.keys() <= values.keys():
            return BatchEncoding(batch)
        padded = {k: v if framework == "pt" else v.numpy() for k, v in batch.items()}
        others = {name: _as_list(v) for name, v in columns.items() if name not in values}
        if others and not isinstance(columns["input_ids"][0], (list, tuple)):
            others = to_py_obj(others)  # as ``pad`` does where the rows are arrays
        padded |= BatchEncoding(others, tensor_type=framework)
        return BatchEncoding({name: padded[name] for name in {**columns, **padded}})

    def _pad_sequences(self, rows: list[Any], as_torch: bool) -> Any:
        """Rows of ids without names, padded; of their own dtype where they are int32."""
        if self.tokenizer.pad_token is None:  # fine for rows of one length, else its error
            pad = _torch_collate_batch if as_torch else _numpy_collate_batch
            return pad(rows, self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)
        kinds = (Tensor,) if as_torch else (np.ndarray, Tensor)
        narrow_rows = all(
            isinstance(row, kinds) and row.dtype in (torch.int32, np.int32) for row in rows
        )
        ids = pad_rows(
            rows,
            padding_value=self.tokenizer.pad_token_id,
            padding_side=self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
            dtype=torch.int32 if narrow_rows else torch.int64,
        )
        return ids if as_torch else ids.numpy()

    def _real(self, rows: list[Any], inputs: Any) -> Tensor:
        """Bool [B, T]: the tokens that the rows brought along, where there is no attention mask."""
        length = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        column = torch.arange(inputs.shape[1])
        if self.tokenizer.padding_side == "left":
            return column >= inputs.shape[1] - length
        return column < length

    def _word_ids(self, rows: Any) -> Tensor | None:
        """int64 [B, T], -1 beside the rows and for tokens that are in no word."""
        if rows is None or isinstance(self._strategy, Random):
            return None
        return pad_rows(
            word_rows(rows),
            padding_value=-1,
            padding_side=self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )

    def _padded(
        self, beside: dict[str, Any], padding: Mapping[str, int | float], inputs: Any
    ) -> dict[str, Tensor]:
        """Columns of one number a token, [B, T] like the inputs: int64, or float64."""
        left, padded = self.tokenizer.padding_side == "left", {}
        for name, value in padding.items():
            rows = _as_list(beside[name])
            if isinstance(value, float):
                if sum(map(len, rows)) == inputs.shape[0] * inputs.shape[1]:  # nothing to pad
                    even = np.concatenate(rows, dtype=np.float64).reshape(tuple(inputs.shape))
                    padded[name] = torch.from_numpy(even)
                    continue
                out = np.full(tuple(inputs.shape), value)
                for b, row in enumerate(rows):
                    out[b, out.shape[1] - len(row) if left else 0 :][: len(row)] = row
                padded[name] = torch.from_numpy(out)
                continue
            padded[name] = pad_rows(
                rows,
                padding_value=value,
                padding_side=self.tokenizer.padding_side,
                pad_to_multiple_of=self.pad_to_multiple_of,
            )
        return padded

    def _within(self, beside: dict[str, Any], batch: dict[str, Any], inputs: Any) -> Tensor:
        """Bool [B, T]: the tokens that ``within`` names."""
        if isinstance(self.within, str):
            return self._padded(beside, {self.within: 0}, inputs)[self.within] != 0
        return self._of_types(batch.get("token_type_ids"))

    def _of_types(self, types: Any) -> Tensor:
        """Bool, like ``types``: the tokens of the types that ``within`` names."""
        if types is None:
            raise ValueError(
                f"within={self.within!r} needs a token_type_ids column, and the examples have none"
            )
        types = torch.as_tensor(types)
        allowed = [self.within] if isinstance(self.within, int) else list(self.within or ())
        return torch.isin(types, torch.tensor(allowed))

    def _offsets(self, rows: Any, inputs: Any, as_torch: bool) -> Any:
        """int64 [B, T, 2], 0 beside the rows."""
        if rows is None or isinstance(self._strategy, Random):
            return None
        padded = pad_rows(
            offset_rows(rows),
            padding_side=self.tokenizer.padding_side,
            pad_to_multiple_of=2 * (self.pad_to_multiple_of or 1),
        ).view(*inputs.shape, 2)
        return padded if as_torch else padded.numpy()

    def _seed_generator(self) -> None:
        """As the parent does: the stream of a seed begins at the first batch, in each worker."""
        if self.seed is not None and self.generator is None and self.rng != "sample":
            self.create_rng()

    def _rate(self) -> float:
        """The rate of the batch that is being made."""
        if self.schedule is None:
            return self.mlm_probability
        done = self._progress.next_batch(by=getattr(self.schedule, "by", "step"))
        return self.mlm_probability if done is None else self.schedule(done)

    def _masking_policy(self, rate: float) -> MaskingPolicy:
        state = (
            len(self.tokenizer), self.tokenizer.mask_token_id, rate, self.mask_replace_prob,
            self.random_replace_prob, self.selection, self.at_least_one, self.replacement,
        )  # fmt: skip
        if self._policy is None or self._policy[0] != state:
            policy = MaskingPolicy(
                mask_token_id=self.tokenizer.mask_token_id,
                vocab_size=len(self.tokenizer),
                rate=rate,
                mask_share=self.mask_replace_prob,
                random_share=self.random_replace_prob,
                selection=self.selection,
                at_least_one=self.at_least_one,
                replacement=self.replacement or self._strategy.replacement,
            )
            self._policy = (state, policy)
        return self._policy[1]

    def _vocabulary(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """(maskable ids, word table if built), anew when the tokenizer has changed."""
        tokenizer = self.tokenizer
        state = (device, len(tokenizer), tuple(tokenizer.all_special_ids))
        if self._tables is None or self._tables[0] != state:
            highest = max(tokenizer.get_vocab().values(), default=-1)
            maskable = torch.ones(max(len(tokenizer), highest + 1), dtype=torch.bool)
            maskable[torch.tensor(tokenizer.all_special_ids)] = False
            self._tables = (state, maskable.to(device), None)
        return self._tables[1:]

    def _word_table(self, device: torch.device) -> Tensor:
        table = word_table(self.tokenizer).to(device)
        if self._tables is not None:
            self._tables = (*self._tables[:2], table)
        return table


def _no_integers(attention_mask: Any) -> bool:
    """The rows of an attention mask are matrices, or of floats or booleans, which stay so."""
    if attention_mask is None or hasattr(attention_mask, "to_pylist"):
        return False
    row: Any = next((row for row in attention_mask if hasattr(row, "__len__") and len(row)), ())
    if hasattr(row, "dtype"):
        return row.ndim > 1 or not str(row.dtype).startswith(
            ("int", "uint", "torch.int", "torch.u")
        )
    return any(isinstance(value, (bool, float, list, tuple)) for value in row[:1])


def word_rows(column: Any) -> list[Any]:
    """The rows of a word_ids column, -1 for tokens that are in no word."""
    return [
        [-1 if word is None else word for word in row]
        if isinstance(row, (list, tuple)) and None in row
        else row
        for row in _as_list(column)
    ]


def offset_rows(column: Any) -> list[Any]:
    """The rows of an offset_mapping column, begins and ends by turns."""
    return [
        row.reshape(-1) if hasattr(row, "reshape") else list(itertools.chain.from_iterable(row))
        for row in _as_list(column)
    ]


def _as_list(column: Any) -> list[Any]:
    """A column as a list of rows; one of Arrow as Python objects."""
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)
