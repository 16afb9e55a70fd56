"""Mask the inputs of any training: a collator of the user's, and masks over its ``input_ids``.

collator = MaskInputs(DataCollatorWithPadding(tokenizer), rate=0.1)
trainer = maskft.attach(Trainer(model, args, data_collator=collator, ...))
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.collate.columns import MaskingColumns, UnmaskedBatch, by_column, check_examples
from maskft.collate.inner import alignment, bounds_of, ids_of, not_aligned, real_of, rows_of
from maskft.collate.padding import Padding
from maskft.strategy import Diffusion, Strategy
from maskft.strategy.by_row import ByRow

RNGS = ("stream", "sample")


@dataclass
class MaskInputs:
    """Mask ``input_ids`` of the batches of any collator, as a regulariser for any task.

    Everything else of a batch is what ``collator`` made: labels, attention_mask, decoder inputs.
    ``mask(prepare(examples))`` is all that a call does. By default every selected token becomes the
    mask token. In a Trainer, ``maskft.attach`` brings epochs and schedule, and does not mask
    evaluation.

    Args:
        collator: a function from examples to a batch: of Transformers (padding, token
            classification, Seq2Seq, flattening, language modelling with ``mlm=False``) or your own.
            A batch holds ``input_ids``, an integer tensor [B, T], and an ``attention_mask`` [B, T]
            where there is padding; or packed rows [1, N] with ``cu_seq_lens_q``, or with
            ``position_ids`` that begin again in each row. A ``special_tokens_mask`` [B, T] is read
            and left out.
        rate: probability in [0, 1] that a maskable token (or unit) is masked. "uniform": a rate for
            each row, t = (w + 0.5) / 2^32 for word w of stream 10, so that the model learns from
            rows masked to any degree.
        tokenizer: the mask token and the special tokens. None: the collator's own.
        share: share of the rows that are masked at all: those with a word of stream 11 below
            T(share). Their masks are those of ``share=1``.
        mask_replace_prob, random_replace_prob: shares of the selected tokens that become the mask
            token and a random token; the others are kept.
        strategy, selection, at_least_one, replacement, replacement_ids, mask_only, schedule, rng,
            seed, sample_id_column: as for ``DataCollatorForLanguageModeling``; there is no "hf".
            The columns that they read are taken from the examples and not handed to ``collator``,
            which must then leave the rows' ids as they are, but for padding. With rng="sample" and
            no ``sample_id_column``, a row is identified by the hash of its tokens before masking.

    Raises:
        ValueError, TypeError: an argument, an example or a batch that does not fit, saying which
            and what would.

    Source: word dropout in Iyyer et al. (2015) and Gal and Ghahramani (2016); masked inputs in
        training, so that erasing tokens does not leave the distribution, in Hase et al. (2021).

    Examples:
        >>> from transformers import DataCollatorWithPadding
        >>> from maskft import MaskInputs
        >>> collator = MaskInputs(DataCollatorWithPadding(tokenizer), rate=0.3, seed=1)
        >>> batch = collator([{**row, "labels": i % 2} for i, row in enumerate(rows)])
        >>> batch["labels"].tolist(), bool((batch["input_ids"] == tokenizer.mask_token_id).any())
        ([0, 1, 0, 1], True)
    """

    collator: Callable[[Any], Any]
    rate: float | str = 0.1
    tokenizer: Any = field(default=None, kw_only=True)
    share: float = field(default=1.0, kw_only=True)
    mask_replace_prob: float = field(default=1.0, kw_only=True)
    random_replace_prob: float = field(default=0.0, kw_only=True)
    strategy: str | Strategy | Callable[..., Any] = field(default="random", kw_only=True)
    selection: str = field(default="bernoulli", kw_only=True)
    at_least_one: bool = field(default=False, kw_only=True)
    replacement: str | None = field(default=None, kw_only=True)
    replacement_ids: str | Sequence[int] | None = field(default=None, kw_only=True)
    mask_only: str | int | Sequence[int] | None = field(default=None, kw_only=True)
    schedule: Callable[[float], float] | None = field(default=None, kw_only=True)
    rng: str = field(default="stream", kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    sample_id_column: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_inner(self.collator)
        if self.tokenizer is None:
            self.tokenizer = getattr(self.collator, "tokenizer", None)
        _check_tokenizer(self.tokenizer, self.collator)
        if self.rng not in RNGS:
            raise ValueError(f"rng must be one of {RNGS}, got {self.rng!r}")
        uniform = _is_uniform(self.rate)
        if uniform and self.schedule is not None:
            raise ValueError("rate='uniform' draws the rate of each row and takes no schedule")
        _check_share("share", self.share)
        # What is masked and by which random words: a masked-LM collator whose labels are not used.
        self._masks = DataCollatorForLanguageModeling(
            self.tokenizer,
            mlm_probability=0.5 if uniform else self.rate,
            mask_replace_prob=self.mask_replace_prob,
            random_replace_prob=self.random_replace_prob,
            seed=self.seed,
            rng=self.rng,
            strategy=self.strategy,
            selection=self.selection,
            at_least_one=self.at_least_one,
            replacement=self.replacement,
            replacement_ids=self.replacement_ids,
            mask_only=self.mask_only,
            schedule=self.schedule,
            sample_id_column=self.sample_id_column,
        )
        if isinstance(self._masks._strategy, Diffusion):
            raise ValueError(
                "strategy='diffusion' weighs the labels of a masked language model, and MaskInputs "
                "makes no labels: rate='uniform' gives each row a rate of its own"
            )
        self._reads: MaskingColumns = self._masks._reads()
        if uniform or self.share < 1.0:
            self._masks._strategy = ByRow(self._masks._strategy, uniform, float(self.share))
        self._masked = True

    def set_epoch(self, epoch: int) -> None:
        """Use the random words of ``epoch`` (rng="sample") from the next batch on, also in workers.

        Call it before iterating over the DataLoader, as for DistributedSampler.
        """
        self._masks.set_epoch(epoch)

    def set_progress(self, step: int, steps: int, **options: int) -> None:
        """Report training progress to ``schedule``, as to ``DataCollatorForLanguageModeling``."""
        self._masks.set_progress(step, steps, **options)

    def required_columns(self) -> list[str]:
        """Return the columns that masking needs and the model does not take."""
        return self._reads.needed()

    def optional_columns(self) -> list[str]:
        """Return the columns that masking reads if the examples have them."""
        return self._reads.welcome()

    def for_evaluation(self) -> "MaskInputs":
        """Return a copy that does not mask."""
        plain = copy.copy(self)
        plain._masked = False
        return plain

    def __call__(self, examples: Any) -> Any:
        return self.mask(self.prepare(examples))

    def prepare(self, examples: Any) -> UnmaskedBatch:
        """Have the collator make its batch, and collect all that the masks depend on."""
        examples = list(examples)
        taken, rest = self._take_apart(examples)
        batch = copy.copy(self.collator(rest))  # whoever made it may keep it
        ids = ids_of(batch)
        unmasked = UnmaskedBatch(batch, batch.pop("special_tokens_mask", None))
        if not self._masked:
            return unmasked
        unmasked.cu_seqlens = bounds_of(batch)
        if unmasked.cu_seqlens is None:
            unmasked.attention_mask = real_of(batch, rest, self.tokenizer)
        else:
            unmasked.count = int(unmasked.cu_seqlens[-1])
            if unmasked.special_tokens_mask is not None:
                unmasked.special_tokens_mask = unmasked.special_tokens_mask[0, : unmasked.count]
        unmasked.sample_ids = self._sample_ids(taken, unmasked, len(ids))
        if self.mask_only is not None or taken.keys() - {self.sample_id_column}:
            self._add_columns(unmasked, taken, rows_of(rest))
        return unmasked

    def mask(self, unmasked: UnmaskedBatch) -> Any:
        """Mask a batch from ``prepare``, on any device, and return it."""
        if self._masked:
            self._masks._seed_generator()
            ids_alone = replace(unmasked, batch={"input_ids": unmasked.batch["input_ids"]})
            unmasked.batch["input_ids"], _ = self._masks._mask(ids_alone)
        return unmasked.batch

    def _take_apart(self, examples: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """Return (the columns that masking reads, the examples without them)."""
        needed, welcome = self._reads.needed(), self._reads.welcome()
        if welcome:  # a strategy of words
            welcome = [*welcome, "offset_mapping"]
        if not examples or not isinstance(examples[0], Mapping):
            if needed:
                kind = type(examples[0]).__name__ if examples else "none"
                raise ValueError(
                    f"masking reads {needed} here, which needs examples that are mappings, got "
                    f"{kind}"
                )
            return {}, examples
        names = [*needed, *(name for name in welcome if name in examples[0])]
        if not names:
            return {}, examples
        check_examples(examples)
        lengths = ["input_ids"] if "input_ids" in examples[0] else []
        taken = self._reads.take(by_column(examples, dict.fromkeys([*names, *lengths])))
        hidden = taken.keys() - set(self.tokenizer.model_input_names)
        rest = [{k: v for k, v in example.items() if k not in hidden} for example in examples]
        return taken, rest

    def _sample_ids(
        self, taken: Mapping[str, Any], unmasked: UnmaskedBatch, count: int
    ) -> Tensor | None:
        """Return the ids of the batch's rows from their column; None without one."""
        ids = self._masks._sample_ids(taken)
        if ids is None:
            return None
        if unmasked.cu_seqlens is not None:  # rows of padding may follow
            ids = functional.pad(ids, (0, unmasked.cu_seqlens.numel() - 1 - ids.numel()))
        elif ids.numel() != count:
            raise ValueError(
                f"sample_id_column={self.sample_id_column!r} has {ids.numel()} ids, and the "
                f"collator's batch has {count} rows: leave it None, and rows are identified by "
                "their tokens"
            )
        return ids

    def _add_columns(self, unmasked: UnmaskedBatch, taken: Mapping[str, Any], rows: Any) -> None:
        """Add the columns that masking reads, in line with the batch's tokens."""
        reads, batch = self._reads, unmasked.batch
        if self.mask_only is not None and not isinstance(self.mask_only, str):
            allowed = reads.of_types(batch.get("token_type_ids"))
            if allowed is not None and unmasked.cu_seqlens is not None:
                allowed = allowed[0, : unmasked.count]
            unmasked.allowed, reads = allowed, replace(reads, mask_only=None)
        names = sorted(taken.keys() - {self.sample_id_column})
        if not names:
            return
        if rows is None:
            raise ValueError(f"{names} need an 'input_ids' column in the examples to line up with")
        if unmasked.cu_seqlens is None:
            padding, _ = alignment(batch["input_ids"], rows, self.tokenizer.padding_side, names)
            unmasked.offset_mapping = reads.offsets(taken, batch["input_ids"].shape, padding)
            reads.add_to(unmasked, taken, padding)
            return
        padding = Padding("right", None)
        ids = padding.rows(rows, name="input_ids")
        real = padding.real(rows, ids.shape[1])
        if not torch.equal(ids[real], unmasked.tokens.long()):
            raise not_aligned(names)
        padded = UnmaskedBatch({"input_ids": ids})
        padded.offset_mapping = reads.offsets(taken, ids.shape, padding)
        reads.add_to(padded, taken, padding)
        for name in ("offset_mapping", "word_ids", "allowed"):
            if getattr(padded, name) is not None:
                setattr(unmasked, name, getattr(padded, name)[real])
        if padded.columns:
            unmasked.columns = {name: column[real] for name, column in padded.columns.items()}


def _check_inner(collator: Any) -> None:
    if not callable(collator):
        raise TypeError(
            "collator must be a function from examples to a batch, such as Transformers' "
            f"DataCollatorWithPadding(tokenizer), got {type(collator).__name__}"
        )
    masks = isinstance(collator, transformers.DataCollatorForLanguageModeling) and collator.mlm
    if masks or isinstance(collator, MaskInputs):
        raise ValueError(
            f"{type(collator).__name__} masks already: give MaskInputs a collator that does not "
            "(for language modelling one with mlm=False)"
        )


def _check_tokenizer(tokenizer: Any, collator: Any) -> None:
    if tokenizer is None:
        raise ValueError(
            f"{type(collator).__name__} has no tokenizer, and MaskInputs needs the mask token and "
            "the special tokens of one: give it tokenizer="
        )
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise ValueError(
            f"the tokenizer has no mask token: {type(tokenizer).__name__} gets one with "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}) and "
            "model.resize_token_embeddings(len(tokenizer)); one of its tokens may serve too"
        )


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def _is_uniform(rate: Any) -> bool:
    if not isinstance(rate, str):
        _check_share("rate", rate)
    elif rate != "uniform":
        raise ValueError(f"rate must be a number in [0, 1] or 'uniform', got {rate!r}")
    return isinstance(rate, str)
