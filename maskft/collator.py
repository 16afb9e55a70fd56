"""Examples to masked batch: Transformers' collator, with masks from maskkernels."""

import itertools
from collections.abc import Mapping, Sequence
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
from maskft.words import word_table
from maskkernels import (
    MaskingPolicy,
    mask_tokens,
    pad_batch,
    pad_rows,
    table_columns,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)

RNGS = ("stream", "sample", "hf")
STRATEGIES = ("random", "whole_word")
_UNUSED = ("offset_mapping",)  # columns that neither masking nor the model needs


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
        strategy: "random" masks single tokens; "whole_word" masks whole words, found from
            ``offset_mapping`` or ``word_ids`` columns where the examples have them, else from the
            tokenizer's vocabulary. Unlike the parent's ``whole_word_mask=True``, which turns
            ``mask_replace_prob`` into 1 with a warning, it keeps the shares it is given.
        sample_id_column: with rng="sample", the name of a column of integers that identify the
            rows. None: a hash of the row's tokens, so equal rows get equal masks.

    Raises:
        ValueError, TypeError: an argument or an example that does not fit, saying which.
    """

    whole_word_mask: bool = False  # these two again for the type checker, which skips Transformers
    seed: int | None = None
    rng: str = field(default="stream", kw_only=True)
    strategy: str = field(default="random", kw_only=True)
    sample_id_column: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, known in (("rng", RNGS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.whole_word_mask:
            self.strategy = "whole_word"
        # Where the parent draws the masks, or refuses mlm=False, it must see the strategy too.
        whole_word = self.strategy == "whole_word"
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
        self._tables: tuple[Any, Tensor, MaskingPolicy, Tensor | None] | None = None

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
        """
        self._seed_generator()
        if self.rng == "hf":
            return super().torch_mask_tokens(inputs.clone(), special_tokens_mask, offset_mapping)
        maskable, policy, words = self._vocabulary(inputs.device)
        beside: dict[str, Any] = {
            "attention_mask": attention_mask,
            "special_tokens_mask": None,
            "maskable": maskable,
            "cu_seqlens": cu_seqlens,
        }
        if special_tokens_mask is not None:
            beside["special_tokens_mask"] = torch.as_tensor(special_tokens_mask)
        units = None
        if self.strategy == "whole_word":
            if offset_mapping is not None:
                units = units_from_offsets(inputs, torch.as_tensor(offset_mapping), **beside)
            elif word_ids is not None:
                units = units_from_word_ids(inputs, word_ids, **beside)
            else:
                if words is None:
                    words = self._word_table(inputs.device)
                units = word_units(inputs, words, **beside)
        rows = inputs.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        draws = self._draws(rows, sample_ids, inputs.device)
        masked = mask_tokens(inputs, policy, units=units, **draws, **beside)
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
            if self.strategy == "whole_word" and given["offset_mapping"] is None:
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
        batch["input_ids"], batch["labels"] = getattr(self, name)(inputs, **given)
        return batch

    def _take_apart(self, examples: Any) -> tuple[dict[str, Any], dict[str, Any] | list[Any]]:
        """(columns that are not for the model, the other columns or plain rows); checks them."""
        table = table_columns(examples)
        if table is not None:
            columns = dict(table)
            if columns and not len(next(iter(columns.values()))):
                raise _empty()
        else:
            examples = list(examples)
            _check_examples(examples)
            if not isinstance(examples[0], Mapping):
                if self.sample_id_column is not None:
                    raise ValueError(
                        f"sample_id_column={self.sample_id_column!r} needs examples that are "
                        f"mappings, got {type(examples[0]).__name__}"
                    )
                return {}, examples
            columns = self._by_column(examples)
        words = ("offset_mapping", "word_ids") if self.strategy == "whole_word" else _UNUSED
        taken = [name for name in words if name in columns]
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
                raise _missing(0, self.sample_id_column, columns)
            taken.append(self.sample_id_column)
        return {name: columns.pop(name) for name in taken}, columns

    def _by_column(self, examples: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = list(examples[0])
        if self.sample_id_column is not None and self.sample_id_column not in names:
            names.append(self.sample_id_column)
        try:
            return {name: [example[name] for example in examples] for name in names}
        except KeyError:
            for i, example in enumerate(examples):
                for name in names:
                    if name not in example:
                        raise _missing(i, name, example) from None
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
        if rows is None or self.strategy != "whole_word":
            return None
        return pad_rows(
            word_rows(rows),
            padding_value=-1,
            padding_side=self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )

    def _offsets(self, rows: Any, inputs: Any, as_torch: bool) -> Any:
        """int64 [B, T, 2], 0 beside the rows."""
        if rows is None or self.strategy != "whole_word":
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

    def _vocabulary(self, device: torch.device) -> tuple[Tensor, MaskingPolicy, Tensor | None]:
        """(maskable ids, policy, word table if built), anew when the tokenizer has changed."""
        tokenizer = self.tokenizer
        state = (
            device,
            len(tokenizer),
            tuple(tokenizer.all_special_ids),
            tokenizer.mask_token_id,
            self.mlm_probability,
            self.mask_replace_prob,
            self.random_replace_prob,
        )
        if self._tables is None or self._tables[0] != state:
            highest = max(tokenizer.get_vocab().values(), default=-1)
            maskable = torch.ones(max(len(tokenizer), highest + 1), dtype=torch.bool)
            maskable[torch.tensor(tokenizer.all_special_ids)] = False
            policy = MaskingPolicy(
                mask_token_id=tokenizer.mask_token_id,
                vocab_size=len(tokenizer),
                rate=self.mlm_probability,
                mask_share=self.mask_replace_prob,
                random_share=self.random_replace_prob,
            )
            self._tables = (state, maskable.to(device), policy, None)
        return self._tables[1:]

    def _word_table(self, device: torch.device) -> Tensor:
        table = word_table(self.tokenizer).to(device)
        if self._tables is not None:
            self._tables = (*self._tables[:3], table)
        return table


def _check_examples(examples: list[Any]) -> None:
    if not examples:
        raise _empty()
    if set(map(type, examples)) <= {dict}:  # the usual case, at once
        return
    first = isinstance(examples[0], Mapping)
    for i, example in enumerate(examples):
        if isinstance(example, str) or not hasattr(example, "__len__"):
            raise TypeError(
                f"example {i} must be a mapping or a sequence of ids, got {type(example).__name__}"
            )
        if isinstance(example, Mapping) != first:
            raise TypeError(
                "a batch is either all mappings or all sequences of ids; example 0 is a "
                f"{type(examples[0]).__name__}, example {i} a {type(example).__name__}"
            )


def _empty() -> ValueError:
    return ValueError("the batch is empty: a collator needs at least one example")


def _missing(i: int, name: str, example: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"example {i} has no column {name!r}; it has {sorted(example)}. "
        "(Trainer drops columns the model does not take: maskft.attach(trainer) "
        "keeps the sample ids, remove_unused_columns=False keeps everything.)"
    )


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
