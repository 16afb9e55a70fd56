"""From examples to denoising batches for encoder-decoder models: T5, UL2 and BART."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import DataCollatorMixin

from maskft.collate.columns import by_column, check_examples, empty_batch, missing_column
from maskft.collate.denoising_ids import SENTINEL, sentence_ends, sentinels
from maskft.collate.denoising_kept import corrupt_around, kept_inside
from maskft.collate.labels import IGNORE_INDEX
from maskft.collate.options import check_column, check_framework
from maskft.collate.randomness import SampleDraws
from maskft.strategy.schedule import check_count
from maskkernels import (
    CorruptedRows,
    Denoiser,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    infill_text,
    pad_batch,
    pad_rows,
)
from maskkernels.batch import flatten_rows, table_columns
from maskkernels.tokens import check_number

RNGS = ("stream", "sample")
_OPTIONAL = ("attention_mask", "special_tokens_mask")  # columns that are read if they are there


@dataclass(kw_only=True)
class _Denoising(SampleDraws, DataCollatorMixin):
    """Corrupt rows and pad them to a batch: what both collators share."""

    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    seed: int | None = None
    rng: str = "stream"
    sample_id_column: str | None = None
    _options: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rng not in RNGS:
            raise ValueError(f"rng must be one of {RNGS}, got {self.rng!r}")
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token: add one with tokenizer.add_special_tokens("
                "{'pad_token': '<pad>'}) and model.resize_token_embeddings(len(tokenizer))"
            )
        if self.max_length is not None:
            self.max_length = check_count("max_length", self.max_length, 1)
        check_framework(self.return_tensors)
        check_column("sample_id_column", self.sample_id_column)
        self.generator = None
        edges = _edges(self.tokenizer)
        self._edges = torch.zeros(max(edges, default=0) + 1, dtype=torch.bool)
        self._edges[list(edges)] = True
        self._begin_draws()

    def _corrupt(self, ids: Tensor, **where: Any) -> CorruptedRows:
        raise NotImplementedError

    def torch_call(self, examples: Any) -> dict[str, Tensor]:
        columns = self._columns(examples)
        ids, bounds = flatten_rows(columns["input_ids"], name="input_ids")
        self._check_lengths(bounds)
        real, special = (
            None if name not in columns else _flags(columns[name], bounds, name)
            for name in _OPTIONAL
        )
        real = None if real is None or real.all() else real
        self._seed_generator()
        draws = self._draws(bounds.numel() - 1, self._sample_ids(columns))
        kept = kept_inside(ids, bounds, self._edges, special)
        where = {"cu_seqlens": bounds, "attention_mask": real, **draws}
        if kept is None:
            corrupted = self._corrupt(ids, **where)
        else:
            corrupted = corrupt_around(kept, ids, corruption=self._options, **where)
        batch = pad_batch(
            {"input_ids": corrupted.inputs},
            padding_values={"input_ids": self.tokenizer.pad_token_id},
            padding_side=self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        # On the right, whatever the tokenizer says: the decoder begins at the first column.
        batch["labels"] = pad_rows(
            corrupted.targets,
            padding_value=IGNORE_INDEX,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        return batch

    def numpy_call(self, examples: Any) -> dict[str, Any]:
        return {name: column.numpy() for name, column in self.torch_call(examples).items()}

    def _columns(self, examples: Any) -> Mapping[str, Any]:
        """Return the columns that are read here, of examples in any form."""
        names = ["input_ids", *([self.sample_id_column] if self.sample_id_column else [])]
        columns = table_columns(examples)
        if columns is None:
            examples = list(examples)
            check_examples(examples)
            if not isinstance(examples[0], Mapping):
                examples = [{"input_ids": row} for row in examples]
            names += [name for name in _OPTIONAL if name in examples[0]]
            return by_column(examples, names)
        for name in names:
            if name not in columns:
                raise missing_column(0, name, columns)
        if not len(columns["input_ids"]):
            raise empty_batch()
        return columns

    def _check_lengths(self, bounds: Tensor) -> None:
        if self.max_length is None or bounds.numel() < 2:
            return
        longest, i = bounds.diff().max(0)
        if longest > self.max_length:
            raise ValueError(
                f"example {int(i)} has {int(longest)} tokens, more than max_length="
                f"{self.max_length}: truncate when tokenizing, or cut texts into blocks"
            )


@dataclass
class DataCollatorForSpanCorruption(_Denoising):
    """Make batches for T5 or UL2: sentinels replace spans, and the labels are the spans.

    Text should be cut into blocks that become full inputs: ``maskkernels.corrupted_lengths`` says
    how long a block becomes. Tokens are looked up when the collator is made.

    Args:
        tokenizer: gives the ids of padding, of the end of a sequence, of the sentinels, and of the
            special tokens, which stay what they are, at the ends of a row and inside it.
        noise_density: share of the tokens that become noise, in (0, 1).
        mean_span_length: mean length of a span, at least 1.
        denoisers: a mixture in place of the two numbers above, of which each row gets one;
            ``maskkernels.ul2_denoisers(...)`` makes UL2's.
        sentinel_ids: None: those of pretraining, the tokenizer's ``<extra_id_0>``,
            ``<extra_id_1>``...; with ByT5's tokenizer 258, 257...
        final_sentinel: one more sentinel after the last span of the labels.
        max_length: refuse longer rows. None: none is too long.
        pad_to_multiple_of: round both lengths up to a multiple of this.
        return_tensors: "pt" or "np".
        seed, rng, sample_id_column: as for ``maskft.DataCollatorForLanguageModeling``, which see;
            there is no "hf". ``set_epoch`` and ``for_evaluation`` too.

    Returns:
        from a call: input_ids and attention_mask [B, T], labels [B, L], -100 after the
        targets. A Transformers model shifts the labels to its decoder's inputs by itself. Of the
        examples' columns, ``input_ids`` is read, ``attention_mask``, whose zeros are left out, and
        ``special_tokens_mask``, which marks tokens that stay, in addition to the special ones.

    Raises:
        ValueError, TypeError: an argument, a tokenizer without sentinels or padding, an example
            that does not fit, more spans than sentinels; saying which and what to do.

    Source: Raffel et al. (2020) for T5, Tay et al. (2022) for UL2.

    Examples:
        >>> from maskft import DataCollatorForSpanCorruption
        >>> batch = DataCollatorForSpanCorruption(t5_tokenizer, seed=1)(rows)
        >>> sorted(batch)
        ['attention_mask', 'input_ids', 'labels']
    """

    tokenizer: PreTrainedTokenizerBase
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    denoisers: Sequence[Denoiser] | None = field(default=None, kw_only=True)
    sentinel_ids: Sequence[int] | None = field(default=None, kw_only=True)
    final_sentinel: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sentinel_ids is None:
            self.sentinel_ids = sentinels(self.tokenizer)
        denoisers = self.denoisers
        if denoisers is None:
            denoisers = (Denoiser(self.noise_density, self.mean_span_length),)
        self._options = SpanCorruption(
            self.sentinel_ids,
            denoisers,
            eos_token_id=self.tokenizer.eos_token_id,
            final_sentinel=self.final_sentinel,
            edge_token_ids=_edges(self.tokenizer),
        )

    def _corrupt(self, ids: Tensor, **where: Any) -> CorruptedRows:
        return corrupt_spans(ids, self._options, **where)


@dataclass
class DataCollatorForTextInfilling(_Denoising):
    """Make batches for BART: spans masked, sentences shuffled, labels the whole text.

    Args:
        tokenizer: gives the ids of padding, of the mask, and of the special tokens, which stay what
            they are, at the ends of a row and inside it. They are looked up when the collator is
            made.
        mask_ratio: share of the tokens that are masked, in (0, 1).
        mean_span_length: mean of the Poisson distribution of span lengths, in (0, 256].
        permute_sentences: shuffle the sentences of each row.
        sentence_end_ids: a sentence ends after each of these ids. None: the tokenizer's full stops,
            exclamation and question marks, of all scripts (Unicode's Sentence_Terminal).
        max_length, pad_to_multiple_of, return_tensors, seed, rng, sample_id_column: as for
            ``DataCollatorForSpanCorruption``.

    Returns:
        from a call: input_ids and attention_mask [B, T], labels [B, L], the rows as they were with
        -100 after them.

    Raises:
        ValueError, TypeError: an argument, a tokenizer without a mask or padding, an example that
            does not fit; saying which and what to do.

    Source: Lewis et al. (2020).

    Examples:
        >>> from maskft import DataCollatorForTextInfilling
        >>> batch = DataCollatorForTextInfilling(bart_tokenizer, seed=1)(rows)
        >>> sorted(batch)
        ['attention_mask', 'input_ids', 'labels']
    """

    tokenizer: PreTrainedTokenizerBase
    mask_ratio: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = field(default=True, kw_only=True)
    sentence_end_ids: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                "the tokenizer has no mask token: add one with tokenizer.add_special_tokens("
                "{'mask_token': '<mask>'}) and model.resize_token_embeddings(len(tokenizer))"
            )
        if self.permute_sentences and self.sentence_end_ids is None:
            self.sentence_end_ids = sentence_ends(self.tokenizer)
        check_number("mask_ratio", self.mask_ratio)
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        self._options = TextInfilling(
            self.tokenizer.mask_token_id,
            self.mask_ratio,
            self.mean_span_length,
            self.permute_sentences,
            () if self.sentence_end_ids is None else self.sentence_end_ids,
            _edges(self.tokenizer),
        )

    def _corrupt(self, ids: Tensor, **where: Any) -> CorruptedRows:
        return infill_text(ids, self._options, **where)


def _edges(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that may be around a row, those added to the tokenizer too."""
    inside = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    inside |= {i for token, i in tokenizer.get_vocab().items() if SENTINEL.fullmatch(token)}
    return tuple(sorted(set(tokenizer.all_special_ids) - inside))


def _flags(rows: Any, bounds: Tensor, name: str) -> Tensor:
    """Return a column with a number for each token, end to end."""
    flags, own = flatten_rows(rows, name=name, often_constant=True)
    if not torch.equal(own, bounds):
        lengths = zip(bounds.diff().tolist(), own.diff().tolist(), strict=False)
        for i, (ids, entries) in enumerate(lengths):
            if ids != entries:
                raise ValueError(
                    f"example {i} has {ids} input_ids but {entries} entries in {name!r}"
                )
        raise ValueError(
            f"there are {bounds.numel() - 1} rows of input_ids but {own.numel() - 1} of {name}"
        )
    return flags
