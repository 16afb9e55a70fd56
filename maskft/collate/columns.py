"""The columns that masking reads in addition to the ids: from examples to a batch."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskft.collate.labels import IGNORE_INDEX
from maskft.collate.notices import Notices
from maskft.collate.padding import Padding, as_list
from maskft.strategy import ENTITY_COLUMN, WEIGHT_COLUMN, Random, Strategy
from maskft.strategy.vocabulary import LARGEST
from maskkernels.batch import table_columns

LATER = "masking"  # the entry of a plain batch that holds what masking needs in addition
# Columns that neither masking nor the model needs, unless a strategy asks for them
_UNUSED = ("offset_mapping", ENTITY_COLUMN, WEIGHT_COLUMN)


@dataclass
class UnmaskedBatch:
    """Hold a padded or packed batch before masking, and all that its masks depend on.

    Attributes:
        batch: what the model gets, without labels: input_ids [B, T]; packed [1, N + P], the N
            tokens of the rows and P of padding.
        special_tokens_mask: [B, T], non-zero where a token must not be masked, in addition to the
            tokenizer's special tokens.
        offset_mapping: [B, T, 2], where each token begins and ends in its text.
        attention_mask: [B, T], non-zero where a token is real. None: all are.
        word_ids: int64 [B, T], the word each token belongs to, -1 for none.
        allowed: bool [B, T]; tokens where it is false are not masked. None: all may be.
        columns: the columns that the strategy reads, each [B, T].
        sample_ids: int64 [B], for rng="sample". None: a hash of each row.
        cu_seqlens: of a packed batch, int64 [B + 1]: where its rows begin and end. What is [B, T]
            above is flat [N] then.
        count: of a packed batch, N.
        highest_id: the highest id, for a batch that is masked on a GPU, where looking for it would
            wait; int64 [B], the same for each row, in a batch on its way through a loader that
            cuts and joins batches. None: no id that the tokenizer does not know.
    """

    batch: Any
    special_tokens_mask: Any = None
    offset_mapping: Tensor | None = None
    attention_mask: Tensor | None = None
    word_ids: Tensor | None = None
    allowed: Tensor | None = None
    columns: Mapping[str, Tensor] | None = None
    sample_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    count: int | None = None
    highest_id: Any = None

    @property
    def is_numpy(self) -> bool:
        return isinstance(self.batch.get("input_ids"), np.ndarray)

    @property
    def tokens(self) -> Any:
        """The ids of the rows: [B, T], or flat [N] without the padding at the end."""
        ids = self.batch["input_ids"]
        if self.cu_seqlens is None:
            return ids
        return ids[0] if ids.shape[1] == self.count else ids[0, : self.count]

    def packed(self, input_ids: Any, labels: Any) -> tuple[Any, Any]:
        """Return flat [N] ids and labels as [1, N + P], with the padding at the end."""
        ids = self.batch["input_ids"]
        if ids.shape[1] > len(input_ids):
            whole, ignored = (
                (ids.copy(), np.full_like(ids, IGNORE_INDEX))
                if self.is_numpy
                else (ids.clone(), torch.full_like(ids, IGNORE_INDEX))
            )
            whole[0, : self.count], ignored[0, : self.count] = input_ids, labels
            return whole, ignored
        return input_ids[None], labels[None]

    def weighing(self, columns: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return ``weighing_columns`` of the rows' tokens as columns of the batch."""
        made = dict(columns)
        if self.cu_seqlens is not None:  # the rows of a packed batch are one row of the model's
            if "num_items" in made:
                made["num_items"] = made["num_items"].sum()[None]
            if "label_weights" in made:
                weights = made["label_weights"]
                padding = self.batch["input_ids"].shape[1] - weights.numel()
                made["label_weights"] = torch.nn.functional.pad(weights, (0, padding))[None]
        return {name: each.numpy() for name, each in made.items()} if self.is_numpy else made

    def to(self, device: torch.device | str) -> "UnmaskedBatch":
        """Return the same with every tensor on ``device``."""
        return UnmaskedBatch(**moved(vars(self), device))


@dataclass(frozen=True)
class MaskingColumns:
    """Name the columns that masking reads; the fields are those of the collator.

    ``taken`` below are the columns that ``take_apart`` took.
    """

    strategy: Strategy
    mask_only: str | int | Sequence[int] | None
    sample_id_column: str | None
    notices: Notices

    def needed(self) -> list[str]:
        """Return the columns that the examples must have."""
        names = [*self.strategy.columns]
        names += [name for name in (self.sample_id_column, self.mask_only) if isinstance(name, str)]
        return names

    def welcome(self) -> list[str]:
        """Return the columns that are read if the examples have them."""
        return [] if isinstance(self.strategy, Random) else ["word_ids"]

    def take_apart(self, examples: Any) -> tuple[dict[str, Any], dict[str, Any] | list[Any]]:
        """Return (columns that are not for the model, the other columns or plain rows).

        Raises:
            ValueError, TypeError: examples that do not fit, or without a column that is needed.
        """
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
                if self.needed():
                    raise ValueError(
                        f"masking reads {self.needed()} here, which needs examples that are "
                        f"mappings, got {type(examples[0]).__name__}"
                    )
                return {}, examples
            columns = by_column(examples, dict.fromkeys([*examples[0], *self.needed()]))
        taken = self.take(columns)
        if columns.pop("labels", None) is not None:
            self.notices.warn(
                "labels",
                "the examples have a column 'labels', which is left out: this collator makes the "
                "labels from input_ids. To train on labels of your own, use transformers' "
                "DataCollatorForTokenClassification or DataCollatorForSeq2Seq; else remove the "
                "column",
            )
        return taken, columns

    def take(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Check the columns that are not for the model, and take them out of ``columns``."""
        taken = [name for name in (*_UNUSED, *self.welcome()) if name in columns]
        needed = [*self.strategy.columns]
        needed += [self.mask_only] if isinstance(self.mask_only, str) else []
        for name in needed:
            if name not in columns:
                raise missing_column(0, name, columns)
            taken += [] if name in taken else [name]
        if taken and "input_ids" in columns:
            lengths = [*map(len, columns["input_ids"])]
            for name in taken:
                _check_lengths(name, _lengths(name, columns[name]), lengths)
        if self.sample_id_column is not None:
            if self.sample_id_column not in columns:
                raise missing_column(0, self.sample_id_column, columns)
            taken.append(self.sample_id_column)
        return {name: columns.pop(name) for name in taken}

    def offsets(
        self, taken: Mapping[str, Any], shape: tuple[int, ...], padding: Padding
    ) -> Tensor | None:
        """Return int64 [B, T, 2], 0 in the padding; None if the strategy needs no words."""
        if "offset_mapping" not in taken or isinstance(self.strategy, Random):
            return None
        rows = offset_rows(taken["offset_mapping"])
        return padding.rows(rows, name="offset_mapping", width=2).view(*shape, 2)

    def add_to(self, unmasked: "UnmaskedBatch", taken: Mapping[str, Any], padding: Padding) -> None:
        """Pad ``word_ids``, ``columns`` and ``allowed`` of a padded batch, those there are."""
        batch = unmasked.batch
        if "word_ids" in taken:
            unmasked.word_ids = padding.rows(word_rows(taken["word_ids"]), -1, name="word_ids")
        if self.strategy.columns:
            unmasked.columns = {
                name: padding.floats(float_rows(taken[name], name), value, batch["input_ids"].shape)
                if isinstance(value, float)
                else padding.rows(as_list(taken[name]), value, name=name)
                for name, value in self.strategy.columns.items()
            }
        if isinstance(self.mask_only, str):
            rows = as_list(taken[self.mask_only])
            unmasked.allowed = padding.rows(rows, name=self.mask_only) != 0
        elif self.mask_only is not None:
            unmasked.allowed = self.of_types(batch.get("token_type_ids"))

    def of_types(self, token_type_ids: Any) -> Tensor | None:
        """Return where the token types are in ``mask_only``, bool; None: everywhere."""
        if self.mask_only is None:
            return None
        if token_type_ids is None:
            raise ValueError(
                f"mask_only={self.mask_only!r} needs a token_type_ids column, and the examples "
                "have none"
            )
        types = torch.as_tensor(token_type_ids)
        allowed = [self.mask_only] if isinstance(self.mask_only, int) else list(self.mask_only)
        return torch.isin(types, torch.tensor(allowed))


def real_tokens(attention_mask: Any, input_ids: Any) -> Tensor | None:
    """Return which tokens are real, [B, T], from a model's attention mask; None: all of them.

    Raises:
        TypeError, ValueError: a mask that does not say it.
    """
    if not isinstance(input_ids, (Tensor, np.ndarray)) or input_ids.ndim != 2:
        shape = f" of shape {tuple(input_ids.shape)}" if hasattr(input_ids, "shape") else ""
        raise TypeError(f"input_ids must be a tensor [B, T], got {type(input_ids).__name__}{shape}")
    if attention_mask is None:
        return None
    try:
        mask = torch.as_tensor(attention_mask, device=getattr(input_ids, "device", "cpu"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"attention_mask must be a tensor, got {type(attention_mask).__name__}: {error}"
        ) from None
    rows, length = input_ids.shape
    by_token = tuple(mask.shape) in ((rows, length), (rows, 1, length), (rows, 1, 1, length))
    if not by_token or mask.is_floating_point():
        raise ValueError(
            f"attention_mask must say which tokens are real, an integer or bool tensor "
            f"[{rows}, {length}] or [{rows}, 1, 1, {length}], got {mask.dtype} of shape "
            f"{tuple(mask.shape)}. For another mask, give the real tokens as "
            f'batch["{LATER}"] = {{"attention_mask": ...}}'
        )
    return mask.reshape(rows, length)


def highest_id(ids: Tensor, attention_mask: Tensor | None) -> int:
    """Return the highest id; -1 without tokens. Absurd ones in the padding do not count."""
    if not ids.numel():
        return -1
    highest = int(ids.numpy().max()) if ids.is_cpu else int(ids.max())  # NumPy's takes half as long
    if attention_mask is None or highest < LARGEST:
        return highest
    real = attention_mask.reshape(ids.shape) != 0  # whatever is in the padding
    return int(torch.where(real, ids, -1).max())


def _check_lengths(name: str, entries: list[int], lengths: list[int]) -> None:
    if entries == lengths:
        return
    for i, (ids, given) in enumerate(zip(lengths, entries, strict=True)):
        if ids != given:
            raise ValueError(f"example {i} has {ids} input_ids but {given} entries in {name!r}")


def _lengths(name: str, column: Any) -> list[int]:
    try:
        return [*map(len, column)]
    except TypeError:
        for i, row in enumerate(column):
            if not hasattr(row, "__len__"):
                raise TypeError(
                    f"row {i} of {name} must have an entry for each token, got {type(row).__name__}"
                ) from None
        raise


def word_rows(column: Any) -> list[Any]:
    """Return the rows of a word_ids column, -1 for tokens that are in no word."""
    return [
        [-1 if word is None else word for word in row]
        if isinstance(row, (list, tuple)) and None in row
        else row
        for row in as_list(column)
    ]


def offset_rows(column: Any) -> list[Any]:
    """Return the rows of an offset_mapping column, beginnings and ends in turn."""
    rows = as_list(column)
    try:
        flat = [
            row.reshape(-1) if hasattr(row, "reshape") else list(itertools.chain.from_iterable(row))
            for row in rows
        ]
    except TypeError:
        flat = []
    if [*map(len, flat)] != [2 * len(row) for row in rows]:
        raise _not_pairs(rows)
    return flat


def _not_pairs(rows: list[Any]) -> Exception:
    for i, row in enumerate(rows):
        for place in row:
            if not hasattr(place, "__len__") or len(place) != 2:
                return TypeError(
                    f"row {i} of offset_mapping must hold pairs (begin, end), got {place!r}"
                )
    return TypeError("offset_mapping must hold pairs (begin, end)")


def float_rows(column: Any, name: str) -> list[np.ndarray]:
    """Return the rows of a column that has a number for each token, as arrays of float64.

    Raises:
        TypeError: a row of something else, naming column and row.
    """
    rows = [np.asarray(row) for row in as_list(column)]
    for i, row in enumerate(rows):
        if row.ndim != 1 or (row.size and row.dtype.kind not in "biuf"):
            values = row.tolist() if row.ndim else [row.item()]
            bad = next(value for value in values if not isinstance(value, (int, float)))
            raise TypeError(f"row {i} of {name} must hold a number for each token, got {bad!r}")
    return [row.astype(np.float64, copy=False) for row in rows]


def check_examples(examples: list[Any]) -> None:
    if not examples:
        raise empty_batch()
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


def by_column(examples: list[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[Any]]:
    """Return the columns of these names; a column that an example lacks is an error."""
    names = list(names)
    try:
        return {name: [example[name] for example in examples] for name in names}
    except KeyError:
        for i, example in enumerate(examples):
            for name in names:
                if name not in example:
                    raise missing_column(i, name, example) from None
        raise


def empty_batch() -> ValueError:
    return ValueError("the batch is empty: a collator needs at least one example")


def missing_column(i: int, name: str, example: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"example {i} has no column {name!r}; it has {sorted(example)}. "
        "(Trainer drops columns the model does not take: maskft.attach(trainer) "
        "keeps the sample ids, remove_unused_columns=False keeps everything.)"
    )


def moved(value: Any, device: torch.device | str) -> Any:
    """Return tensors, also in mappings, on ``device``, and other values as they are."""
    if isinstance(value, Mapping):
        return {name: moved(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
