"""Examples to masked batch: Transformers' collator, with masks from maskkernels."""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.data.data_collator import (
    _numpy_collate_batch,
    _torch_collate_batch,
    pad_without_fast_tokenizer_warning,
)

from maskft.words import units_from_offsets, units_from_word_ids, word_table, word_units
from maskkernels import MaskingPolicy, mask_tokens

RNGS = ("stream", "sample", "hf")
STRATEGIES = ("random", "whole_word")
_UNUSED = ("offset_mapping",)  # columns that neither masking nor the model needs
EVALUATION_EPOCH = (1 << 24) - 1  # the last epoch of the contract: no training run reaches it


@dataclass
class DataCollatorForLanguageModeling(transformers.DataCollatorForLanguageModeling):
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
        if self.seed is not None:
            self.seed = operator.index(self.seed)
            low = 0 if self.rng == "sample" else -(1 << 63)
            if not low <= self.seed < 1 << 64:
                raise ValueError(f"seed must be in [{low}, 2**64), got {self.seed}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by every worker
        self._tables: tuple[Any, Tensor, MaskingPolicy, Tensor | None] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Use the masks of ``epoch`` (rng="sample") from the next batch on, in workers too.

        Call it before iterating over the DataLoader, as for DistributedSampler.
        """
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch % (1 << 24))

    def for_evaluation(self) -> "DataCollatorForLanguageModeling":
        """A copy with masks that never change: rng="sample" at an epoch training never reaches."""
        fixed = copy.copy(self)
        fixed.rng, fixed.generator = "sample", None
        fixed.seed = (self.seed or 0) % (1 << 64)
        fixed._epoch = torch.tensor(EVALUATION_EPOCH)
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
    ) -> tuple[Tensor, Tensor]:
        """Mask a padded batch; returns (input_ids, labels), both new.

        Args:
            inputs: int32 or int64 [B, T].
            special_tokens_mask: [B, T], non-zero where a token must not be masked. None: the
                tokenizer's special tokens must not.
            offset_mapping: [B, T, 2], where each token begins and ends in its text.
            attention_mask: [B, T], non-zero where a token is real. None: all are.
            word_ids: int64 [B, T], the word each token belongs to, -1 for none.
            sample_ids: int64 [B], for rng="sample". None: a hash of each row.
        """
        self._seed_generator()
        if self.rng == "hf":
            return super().torch_mask_tokens(inputs.clone(), special_tokens_mask, offset_mapping)
        maskable, policy, words = self._vocabulary()
        special = None if special_tokens_mask is None else torch.as_tensor(special_tokens_mask)
        units = None
        if self.strategy == "whole_word":
            allowed = _allowed(inputs, special, maskable, attention_mask)
            if offset_mapping is not None:
                units = units_from_offsets(torch.as_tensor(offset_mapping), allowed)
            elif word_ids is not None:
                units = units_from_word_ids(word_ids, allowed)
            else:
                if words is None:
                    words = self._word_table()
                units = word_units(inputs, allowed, words)
        seed, epoch = self.seed or 0, int(self._epoch)
        if self.rng == "stream":
            draw = torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            seed, epoch, sample_ids = int(draw), 0, torch.arange(inputs.shape[0])
        masked = mask_tokens(
            inputs,
            policy,
            seed=seed,
            epoch=epoch,
            sample_ids=sample_ids,
            attention_mask=attention_mask,
            special_tokens_mask=special,
            maskable=maskable,
            units=units,
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

    def _collate(self, examples: Sequence[Any], framework: str) -> dict[str, Any]:
        as_torch = framework == "pt"
        beside, examples = self._take_apart(examples)
        if isinstance(examples[0], Mapping):
            batch = pad_without_fast_tokenizer_warning(
                self.tokenizer,
                examples,
                return_tensors=framework,
                pad_to_multiple_of=self.pad_to_multiple_of,
            )
        else:
            pad = _torch_collate_batch if as_torch else _numpy_collate_batch
            ids = pad(examples, self.tokenizer, pad_to_multiple_of=self.pad_to_multiple_of)
            batch = {"input_ids": ids}
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
            "offset_mapping": self._pad_beside(beside.get("offset_mapping"), inputs, as_torch),
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
            if real is None:
                real = self._real(examples, inputs)
            given["attention_mask"] = torch.as_tensor(real)
            given["word_ids"] = self._pad_beside(beside.get("word_ids"), inputs, True)
            given["sample_ids"] = self._sample_ids(beside)
        batch["input_ids"], batch["labels"] = getattr(self, name)(inputs, **given)
        return batch

    def _take_apart(self, examples: Sequence[Any]) -> tuple[dict[str, list[Any]], list[Any]]:
        """(columns that are not for the model, examples without them); checks the examples."""
        examples = list(examples)
        if not examples:
            raise ValueError("the batch is empty: a collator needs at least one example")
        first = examples[0]
        for i, example in enumerate(examples):
            if isinstance(example, str) or not hasattr(example, "__len__"):
                raise TypeError(
                    f"example {i} must be a mapping or a sequence of ids, got "
                    f"{type(example).__name__}"
                )
            if isinstance(example, Mapping) != isinstance(first, Mapping):
                raise TypeError(
                    "a batch is either all mappings or all sequences of ids; example 0 is a "
                    f"{type(first).__name__}, example {i} a {type(example).__name__}"
                )
        if not isinstance(first, Mapping):
            if self.sample_id_column is not None:
                raise ValueError(
                    f"sample_id_column={self.sample_id_column!r} needs examples that are mappings, "
                    f"got {type(first).__name__}"
                )
            return {}, examples
        words = ("offset_mapping", "word_ids") if self.strategy == "whole_word" else _UNUSED
        taken = [name for name in words if name in first]
        if self.sample_id_column is not None:
            taken.append(self.sample_id_column)
        for i, example in enumerate(examples):
            for name in (*first, *taken):
                if name not in example:
                    raise ValueError(
                        f"example {i} has no column {name!r}; it has {sorted(example)}. "
                        "(Trainer drops columns the model does not take: maskft.attach(trainer) "
                        "keeps the sample ids, remove_unused_columns=False keeps everything.)"
                    )
                if name in words and len(example[name]) != len(example["input_ids"]):
                    raise ValueError(
                        f"example {i} has {len(example['input_ids'])} input_ids but "
                        f"{len(example[name])} entries in {name!r}"
                    )
        beside = {name: [example[name] for example in examples] for name in taken}
        if taken:
            examples = [{k: v for k, v in e.items() if k not in taken} for e in examples]
        return beside, examples

    def _sample_ids(self, beside: dict[str, list[Any]]) -> Tensor | None:
        """int64 [B] from the sample-id column; None without one."""
        if self.sample_id_column is None:
            return None
        ids = []
        for value in beside[self.sample_id_column]:
            try:
                number = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"column {self.sample_id_column!r} must hold integers, got {value!r}"
                ) from None
            if not -(1 << 63) <= number < 1 << 64:
                raise ValueError(f"sample id {number} does not fit in 64 bits")
            ids.append(number - (1 << 64) if number >> 63 == 1 else number)
        return torch.tensor(ids, dtype=torch.int64)

    def _real(self, examples: list[Any], inputs: Any) -> Tensor:
        """Bool [B, T]: the tokens that the rows brought along, where there is no attention mask."""
        rows = [e["input_ids"] if isinstance(e, Mapping) else e for e in examples]
        length = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        column = torch.arange(inputs.shape[1])
        if self.tokenizer.padding_side == "left":
            return column >= inputs.shape[1] - length
        return column < length

    def _pad_beside(self, rows: list[Any] | None, inputs: Any, as_torch: bool) -> Any:
        """Offsets [B, T, 2] (padded with 0) or word ids [B, T] (padded with -1), int64."""
        if rows is None or self.strategy != "whole_word":
            return None
        padded: np.ndarray | None = None
        for i, row in enumerate(rows):
            values = np.asarray([-1 if value is None else value for value in row], dtype=np.int64)
            if padded is None:
                padded = np.full((*inputs.shape, *values.shape[1:]), -1 + (values.ndim > 1))
            side = slice(0, len(values))
            if self.tokenizer.padding_side == "left":
                side = slice(inputs.shape[1] - len(values), inputs.shape[1])
            padded[i, side] = values
        return torch.from_numpy(padded) if as_torch else padded

    def _seed_generator(self) -> None:
        """As the parent does: the stream of a seed begins at the first batch, in each worker."""
        if self.seed is not None and self.generator is None and self.rng != "sample":
            self.create_rng()

    def _vocabulary(self) -> tuple[Tensor, MaskingPolicy, Tensor | None]:
        """(maskable ids, policy, word table if built), anew when the tokenizer has changed."""
        tokenizer = self.tokenizer
        state = (
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
            self._tables = (state, maskable, policy, None)
        return self._tables[1:]

    def _word_table(self) -> Tensor:
        table = word_table(self.tokenizer)
        if self._tables is not None:
            self._tables = (*self._tables[:3], table)
        return table


def _allowed(
    inputs: Tensor, special: Tensor | None, maskable: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """Bool [B, T]: real tokens that are not special; an id outside the vocabulary is."""
    if special is None:
        inside = (inputs >= 0) & (inputs < maskable.numel())
        allowed = maskable[torch.where(inside, inputs, 0).long()] & inside
    else:
        allowed = special == 0
    return allowed if attention_mask is None else allowed & (attention_mask != 0)
