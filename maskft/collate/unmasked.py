"""Masking on the model's device: the loader only pads, and the batch is masked on arrival.

    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
    for batch in DataLoader(rows, collate_fn=UnmaskedCollator(collator)):
        batch = mask_batch(batch.to("cuda"), collator)

Less to pin and to copy (int32 ids instead of two int64 columns), and no masking in the workers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.collate.columns import LATER, UnmaskedBatch, highest_id, real_tokens
from maskft.collate.inputs import MaskInputs
from maskkernels.tokens import check_flag

_INT32 = ("cu_seq_lens_q", "cu_seq_lens_k")  # as FlashAttention wants them


class UnmaskedCollator:
    """Prepare batches for ``mask_batch``: a collator's ``prepare`` as a plain dict.

    A batch holds what the collator's would, without labels, its integer tensors in ``dtype``, and
    an entry "masking" with the other inputs of masking.

    Args:
        collator: a maskft collator (padding or packing) or ``MaskInputs``; shared, so that
            ``set_epoch`` reaches ``mask_batch``. rng="hf" draws its masks on the CPU alone.
        dtype: torch.int32 (half of what has to be copied) or torch.int64.
        dispatched: the loader cuts and joins batches, as accelerate does with
            ``dispatch_batches``: everything in a batch then has an entry for each row, the highest
            id too, which ``mask_batch`` waits for on a GPU. ``attach`` knows it of a Trainer.

    Raises:
        TypeError, ValueError: a collator or dtype that does not fit.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling, UnmaskedCollator
        >>> unmasked = UnmaskedCollator(DataCollatorForLanguageModeling(tokenizer, seed=1))
        >>> sorted(unmasked(rows))
        ['attention_mask', 'input_ids', 'masking', 'token_type_ids']
    """

    def __init__(
        self,
        collator: DataCollatorForLanguageModeling | MaskInputs,
        dtype: torch.dtype = torch.int32,
        *,
        dispatched: bool = False,
    ) -> None:
        check_collator(collator)
        check_flag("dispatched", dispatched)
        if dtype not in (torch.int32, torch.int64):
            raise TypeError(f"dtype must be torch.int32 or torch.int64, got {dtype}")
        self.collator, self.dtype, self.dispatched = collator, dtype, dispatched

    def __call__(self, examples: Any) -> dict[str, Any]:
        unmasked = self.collator.prepare(examples)
        if self.dispatched and unmasked.cu_seqlens is not None:
            raise ValueError(
                "a packed batch cannot be cut and joined by rows: load it without accelerate's "
                "dispatch_batches"
            )
        ids = torch.as_tensor(unmasked.tokens)
        highest = highest_id(ids, unmasked.attention_mask)
        if self.dispatched:
            unmasked.highest_id = torch.full((ids.shape[0],), highest)
        elif highest >= len(self.collator.tokenizer):
            unmasked.highest_id = highest
        batch = {
            name: value.to(self.dtype)
            if isinstance(value, Tensor) and value.dtype == torch.int64 and self._narrows(name)
            else value
            for name, value in unmasked.batch.items()
        }
        rest = {name: value for name, value in vars(unmasked).items() if name != "batch"}
        mask = unmasked.batch.get("attention_mask")
        if mask is unmasked.attention_mask and mask is not None and not mask.is_floating_point():
            del rest["attention_mask"]  # it travels with the batch
        batch[LATER] = {name: value for name, value in rest.items() if value is not None}
        return batch

    def _narrows(self, name: str) -> bool:
        return not isinstance(self.collator, MaskInputs) or name == "input_ids"


def mask_batch(
    batch: Mapping[str, Any], collator: DataCollatorForLanguageModeling | MaskInputs
) -> dict[str, Any]:
    """Mask a prepared batch on its device, as the collator would have masked it.

    With rng="sample" the masks are those of the collator, bit for bit: Numba makes them on the CPU
    and Triton on a GPU, without waiting for the device.

    Args:
        batch: from an ``UnmaskedCollator``, on any device; or a mapping with padded
            input_ids [B, T] (int32 or int64) and, where there is padding, an attention_mask of
            integers or bools, [B, T] or [B, 1, 1, T], a tensor, array or list. A batch that has
            labels is masked already and comes back as it is. With ``MaskInputs`` only batches
            from an ``UnmaskedCollator`` are masked: others come back as they are.
        collator: rate, shares, strategy, rng, seed and epoch (``set_epoch``) of the masks.

    Returns:
        a new dict: the batch with input_ids masked and labels, both int64, as models want them,
        and label_positions if the collator adds them (on a GPU, only a fixed number of them). With
        ``MaskInputs`` everything but input_ids is as it was.

    Raises:
        TypeError, ValueError: a collator or batch that does not fit; label_positions=True on a GPU.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling, UnmaskedCollator, mask_batch
        >>> collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
        >>> batch = mask_batch(UnmaskedCollator(collator)(rows), collator)
        >>> bool((batch["labels"] == collator(rows)["labels"]).all())
        True
    """
    check_collator(collator)
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a mapping, got {type(batch).__name__}")
    own_labels = isinstance(collator, MaskInputs)
    if LATER not in batch if own_labels else "labels" in batch:
        return dict(batch)
    if "input_ids" not in batch:
        raise ValueError(f"the batch has no 'input_ids'; it has {sorted(batch)}")
    plain = {
        name: value.long()
        if isinstance(value, Tensor)
        and value.dtype == torch.int32
        and (name == "input_ids" if own_labels else name not in _INT32)
        else value
        for name, value in batch.items()
    }
    given = dict(plain.pop(LATER, {}))
    if "special_tokens_mask" in plain:
        given["special_tokens_mask"] = plain.pop("special_tokens_mask")
    if collator.sample_id_column in plain:
        given["sample_ids"] = plain.pop(collator.sample_id_column)
    if isinstance(given.get("highest_id"), Tensor):  # of a dispatched batch
        given["highest_id"] = int(given["highest_id"].max()) if plain["input_ids"].numel() else None
    if not given.keys() & {"attention_mask", "cu_seqlens"}:
        given["attention_mask"] = real_tokens(plain.get("attention_mask"), plain["input_ids"])
    return collator.mask(UnmaskedBatch(plain, **given))


def check_collator(collator: Any) -> None:
    if isinstance(collator, MaskInputs):
        return
    if not isinstance(collator, DataCollatorForLanguageModeling):
        raise TypeError(
            "masking on the device needs a maskft.DataCollatorForLanguageModeling or "
            f"maskft.MaskInputs as its collator, got {type(collator).__name__}"
        )
    if collator.rng == "hf" or not collator.mlm:
        option = "rng='hf'" if collator.rng == "hf" else "mlm=False"
        raise ValueError(
            f"masking on the device does not go with {option}: it takes rng='stream' or 'sample'"
        )
