"""Examples to packed batches: rows end to end without padding, with the masks of the padded batch.

sampler = PackedBatchSampler(lengths, block_size=4096, seed=1)
collator = DataCollatorWithPacking.for_model(model, tokenizer, rng="sample", seed=1)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collator)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.collate.columns import UnmaskedBatch, float_rows, offset_rows, word_rows
from maskft.packing.attention import ATTENTIONS, lay_out, packed_attention
from maskft.strategy import Random
from maskft.strategy.schedule import check_count
from maskkernels.batch import flatten_rows

_TOKEN_COLUMNS = ("token_type_ids", "special_tokens_mask", "attention_mask")
# The least value of each number
_LEAST = {
    "max_length": 1, "total_length": 1, "max_samples": 1, "position_ids_start": 0,
    "sliding_window": 0,
}  # fmt: skip
_OWN = "strategy's "  # in front of the columns that the strategy reads


@dataclass
class DataCollatorWithPacking(DataCollatorForLanguageModeling):
    """Lay the rows of a batch end to end without padding, and mask them.

    The masks are those of the padded batch, bit for bit, with rng="sample" and rng="stream".
    Tokens that an example's attention_mask leaves out (padding it came with) are dropped. Rows
    must not see each other, and how a model is told so depends on its attention: ``for_model``
    finds the arguments that fit a model and proves them on it.

    Args:
        attention: how rows are kept apart.
            "varlen": by ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and
            ``max_length_k``, which Transformers hands to FlashAttention. **Other attentions ignore
            them without a word**, and rows then see each other.
            "block_diagonal": by an attention mask [1, 1, N, N], for sdpa and eager attention.
            "padded": not packed at all, the batch of ``DataCollatorForLanguageModeling``: for
            models that can do neither.
        position_ids_start: the position of a row's first token; padding_idx + 1 for RoBERTa's kin.
        mask_dtype: of a block-diagonal mask: bool for sdpa; a float dtype gives the mask that
            eager attention adds to its scores (it takes bool for numbers, and goes wrong).
        sliding_window: for models with local layers (ModernBERT): tokens further apart than this do
            not see each other in them. The block-diagonal mask is then a mapping
            {"full_attention": [1, 1, N, N], "sliding_attention": [1, 1, N, N]}.
        max_length: cut rows to this many tokens. None: leave them whole.
        total_length: fill the batch with pad tokens, which are neither seen nor predicted, to
            this many tokens: a static shape. None: no padding at all.
        max_samples: with ``total_length``, let cu_seq_lens name this many rows, empty ones after
            the real ones, and max_length be ``total_length``: static shapes and numbers for a
            compiled model.
        the others: as for ``DataCollatorForLanguageModeling``; ``pad_to_multiple_of`` counts the
            tokens of the whole batch, and rng="hf" needs "padded".

    A batch holds input_ids, position_ids, labels [1, N] (int64), token_type_ids where the examples
    have them, label_positions if the option is set, and, by ``attention``: cu_seq_lens_q and
    cu_seq_lens_k (int32 [B + 1], the padding a row of its own) with max_length_q and max_length_k
    (int); or attention_mask.

    Raises:
        ValueError, TypeError: an argument or an example that does not fit, saying which; a column
            that is neither a token's nor used in masking.

    Examples:
        >>> from maskft import DataCollatorWithPacking
        >>> batch = DataCollatorWithPacking(tokenizer, attention="block_diagonal", seed=1)(rows)
        >>> batch["input_ids"].numel() == sum(len(row["input_ids"]) for row in rows)
        True
    """

    attention: str = field(kw_only=True)
    position_ids_start: int = field(default=0, kw_only=True)
    mask_dtype: torch.dtype = field(default=torch.bool, kw_only=True)
    sliding_window: int | None = field(default=None, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    total_length: int | None = field(default=None, kw_only=True)
    max_samples: int | None = field(default=None, kw_only=True)

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, **options: Any) -> "DataCollatorWithPacking":
        """Make a collator with the attention, positions and mask that fit a model, as tested on it.

        The model runs twice on a few short rows, packed and alone. Where neither "varlen" (for
        FlashAttention) nor "block_diagonal" gives what the rows give alone, the collator pads:
        see its ``attention``.

        Args:
            model: a Transformers model; in the state and on the device it has.
            tokenizer, options: as for the class. An ``attention`` among them must hold the proof.

        Raises:
            ValueError: the given ``attention`` lets rows see each other in this model, or fails.
        """
        found = packed_attention(model, len(tokenizer), options.get("attention"))
        return cls(tokenizer, **{**found, **options})

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {ATTENTIONS}, got {self.attention!r}")
        super().__post_init__()
        if self.rng == "hf" and self.attention != "padded":
            raise ValueError(
                "rng='hf' draws the masks of a padded batch; packed batches take rng='stream' or "
                "rng='sample'"
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name == "position_ids_start":
                setattr(self, name, check_count(name, value, least, bits=31))
        if self.max_samples is not None and self.total_length is None:
            raise ValueError("max_samples goes with total_length")
        dtype = self.mask_dtype
        if not isinstance(dtype, torch.dtype) or not (
            dtype == torch.bool or dtype.is_floating_point
        ):
            raise TypeError(
                f"mask_dtype must be torch.bool or a float dtype, got {self.mask_dtype!r}"
            )

    def prepare(self, examples: Any, framework: str = "pt") -> UnmaskedBatch:
        """Lay the rows end to end, and gather all that their masks depend on."""
        if self.attention == "padded":
            return super().prepare(examples, framework)
        taken, columns = self._reads().take_apart(examples)
        rows = columns if isinstance(columns, Mapping) else {"input_ids": columns}
        flat, cu_seqlens = self._flatten(rows, taken)
        batch = self._finish(flat, cu_seqlens)
        batch = batch if framework == "pt" else _as_numpy(batch)
        count = flat["input_ids"].numel()
        if not self.mlm:
            return UnmaskedBatch(batch, cu_seqlens=cu_seqlens, count=count)
        return UnmaskedBatch(
            batch,
            flat.get("special_tokens_mask"),
            flat.get("offset_mapping"),
            word_ids=flat.get("word_ids"),
            allowed=self._allowed(flat),
            columns={name: flat[_OWN + name] for name in self._strategy.columns},
            sample_ids=self._sample_ids(taken),
            cu_seqlens=cu_seqlens,
            count=count,
        )

    def _flatten(
        self, rows: Mapping[str, Any], taken: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return (columns with one entry for each token [N, ...], cu_seqlens int64 [B + 1])."""
        if "input_ids" not in rows:
            raise ValueError(f"the examples have no column 'input_ids'; they have {sorted(rows)}")
        others = rows.keys() - {"input_ids", *_TOKEN_COLUMNS}
        if others:
            raise ValueError(
                f"columns {sorted(others)} have no place in a packed batch; leave them out "
                "(Trainer does, with remove_unused_columns=True)"
            )
        ids, cu_seqlens = flatten_rows(rows["input_ids"], name="input_ids")
        flat = {"input_ids": ids.long()}
        for name in _TOKEN_COLUMNS:
            if name not in rows:
                continue
            values, bounds = flatten_rows(rows[name], name=name, often_constant=True)
            if not torch.equal(bounds, cu_seqlens):
                raise ValueError(f"{name!r} does not have one value for each token of 'input_ids'")
            flat[name] = values.long()
        units = not isinstance(self._strategy, Random)
        if "word_ids" in taken and units:
            flat["word_ids"] = flatten_rows(word_rows(taken["word_ids"]), name="word_ids")[0]
        if "offset_mapping" in taken and units:
            pairs = flatten_rows(offset_rows(taken["offset_mapping"]), name="offset_mapping")[0]
            flat["offset_mapping"] = pairs.long().view(-1, 2)
        for name, value in self._strategy.columns.items():
            flat[_OWN + name] = _flat_column(taken[name], name, isinstance(value, float))
        if isinstance(self.mask_only, str):
            flat[_OWN] = _flat_column(taken[self.mask_only], self.mask_only, False)
        return _leave_out(flat, cu_seqlens, self.max_length)

    def _allowed(self, flat: dict[str, Tensor]) -> Tensor | None:
        """Return where ``mask_only`` allows masks, bool [N]; None: everywhere."""
        if isinstance(self.mask_only, str):
            return flat[_OWN] != 0
        return self._reads().of_types(flat.get("token_type_ids"))

    def _finish(self, flat: dict[str, Tensor], cu_seqlens: Tensor) -> dict[str, Any]:
        """Return the model's batch without labels: ids, positions, attention, padding."""
        padding = self._padding(flat["input_ids"].numel())
        values = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        batch: dict[str, Any] = {
            name: functional.pad(flat[name], (0, padding), value=value if padding else 0)[None]
            for name, value in values.items()
            if name in flat
        }
        return batch | lay_out(
            cu_seqlens,
            attention=self.attention,
            position_ids_start=self.position_ids_start,
            mask_dtype=self.mask_dtype,
            sliding_window=self.sliding_window,
            padding=padding,
            max_samples=self.max_samples,
        )

    def _padding(self, count: int) -> int:
        """Return how many pad tokens follow ``count`` tokens."""
        multiple = self.pad_to_multiple_of or 1
        total = -(-count // multiple) * multiple if self.total_length is None else self.total_length
        if count > total:
            raise ValueError(
                f"the rows of the batch have {count} tokens, total_length is {total}: let "
                "PackedBatchSampler choose rows that fit, or cut them with max_length"
            )
        if total > count and self.tokenizer.pad_token_id is None:
            raise ValueError("padding a packed batch needs a tokenizer with a pad token")
        return total - count


def _leave_out(
    flat: dict[str, Tensor], cu_seqlens: Tensor, max_length: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Drop the tokens outside the attention mask, and those past ``max_length``."""
    kept = flat.pop("attention_mask", None)
    lengths = cu_seqlens.diff()
    kept = None if kept is None or bool(kept.all()) else kept != 0
    too_long = max_length is not None and bool((lengths > max_length).any())
    if kept is None and not too_long:
        return flat, cu_seqlens
    row = torch.repeat_interleave(torch.arange(lengths.numel()), lengths)
    if kept is None:
        kept = torch.ones_like(row, dtype=torch.bool)
    before = functional.pad(kept.long().cumsum(0), (1, 0))  # kept tokens before each
    begins = kept & ~(torch.cat([kept.new_zeros(1), kept[:-1]]) & (row == row.roll(1)))
    if torch.bincount(row[begins], minlength=1).max() > 1:
        b = int(torch.bincount(row[begins]).argmax())
        raise ValueError(
            f"the attention_mask of example {b} leaves out tokens between others, which a packed "
            "row cannot do"
        )
    if max_length is not None:
        kept = kept & (before[:-1] - before[cu_seqlens[:-1]][row] < max_length)
    ends = functional.pad(kept.long().cumsum(0), (1, 0))[cu_seqlens]
    return {name: values[kept] for name, values in flat.items()}, ends


def _flat_column(rows: Any, name: str, floats: bool) -> Tensor:
    """Return a column of one number for each token, int64 or float64 [N]."""
    if not floats:
        return flatten_rows(rows, name=name)[0].long()
    return torch.from_numpy(np.concatenate(float_rows(rows, name)))


def _as_numpy(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _as_numpy(value) for name, value in batch.items()}
    return batch.numpy() if isinstance(batch, Tensor) else batch
