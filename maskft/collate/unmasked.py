"""Masking on the model's device: the loader only pads, and the batch is masked where it arrives.

    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
    for batch in DataLoader(rows, collate_fn=PlainCollator(collator)):
        batch = mask_batch(batch.to("cuda"), collator)

Less to pin and to copy (int32 ids instead of two int64 columns), and no masking in the workers.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.collate.labels import IGNORE_INDEX, label_places

LATER = "masking"  # the entry of a plain batch that holds what masking needs beside the ids
_INT32 = ("cu_seq_lens_q", "cu_seq_lens_k")  # as FlashAttention wants them


class PlainCollator:
    """A collator that stops before masking: what ``mask_batch`` takes.

    A batch holds what the collator's would, without labels, its integer tensors in ``dtype``, and
    an entry "masking" with what the masks depend on besides the ids.

    Args:
        collator: a maskft collator (padding or packing); shared, so that ``set_epoch`` reaches
            ``mask_batch``. rng="hf" draws its masks on the CPU alone.
        dtype: torch.int32 (half of what has to be copied) or torch.int64.

    Raises:
        TypeError, ValueError: a collator or dtype that does not fit.
    """

    def __init__(
        self, collator: DataCollatorForLanguageModeling, dtype: torch.dtype = torch.int32
    ) -> None:
        check_collator(collator)
        if dtype not in (torch.int32, torch.int64):
            raise TypeError(f"dtype must be torch.int32 or torch.int64, got {dtype}")
        self.collator, self.dtype = collator, dtype

    def __call__(self, examples: Any) -> dict[str, Any]:
        later: dict[str, Any] = {}

        def postpone(
            inputs: Tensor, special_tokens_mask: Any, offset_mapping: Any, **beside: Any
        ) -> tuple[Tensor, Tensor]:
            beside |= {"special_tokens_mask": special_tokens_mask, "offset_mapping": offset_mapping}
            if beside.get("cu_seqlens") is not None:
                beside["tokens"] = inputs.numel()
            later.update(beside)
            return inputs, inputs

        unmasked = copy.copy(self.collator)
        unmasked.__dict__["torch_mask_tokens"] = postpone  # in place of the method, in the copy
        unmasked.label_positions = False  # known when the batch is masked
        batch = dict(unmasked.torch_call(examples))
        del batch["labels"]
        if _is_mask(later.get("attention_mask"), batch):
            del later["attention_mask"]  # it travels with the batch
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.dtype == torch.int64:
                batch[name] = value.to(self.dtype)
        batch[LATER] = {name: value for name, value in later.items() if value is not None}
        return batch


def mask_batch(
    batch: Mapping[str, Any], collator: DataCollatorForLanguageModeling
) -> dict[str, Any]:
    """Mask a plain batch on the device it is on, as the collator would have.

    With rng="sample" the masks are those of the collator, bit for bit: Numba makes them on the CPU
    and Triton on a GPU, without waiting for the device.

    Args:
        batch: what a ``PlainCollator`` gave, on any device; or a mapping with plain padded
            input_ids [B, T] (int32 or int64) and, where there is padding, attention_mask. A batch
            that has labels is masked already and comes back as it is.
        collator: rate, shares, strategy, rng, seed and epoch (``set_epoch``) of the masks.

    Returns:
        a new dict: the batch with input_ids masked and labels, both int64, as models want them,
        and label_positions where the collator is asked for them (on a GPU by a number).

    Raises:
        TypeError, ValueError: a collator or batch that does not fit; label_positions=True on a GPU.
    """
    check_collator(collator)
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a mapping, got {type(batch).__name__}")
    if "labels" in batch:
        return dict(batch)
    if "input_ids" not in batch:
        raise ValueError(f"the batch has no 'input_ids'; it has {sorted(batch)}")
    plain = {
        name: value.long()
        if isinstance(value, Tensor) and value.dtype == torch.int32 and name not in _INT32
        else value
        for name, value in batch.items()
    }
    given = dict(plain.pop(LATER, {}))
    if "special_tokens_mask" in plain:
        given["special_tokens_mask"] = plain.pop("special_tokens_mask")
    if collator.sample_id_column in plain:
        given["sample_ids"] = plain.pop(collator.sample_id_column)
    ids = plain["input_ids"]
    if "cu_seqlens" in given:
        plain["input_ids"], plain["labels"] = _mask_packed(ids, collator, given)
        return _with_places(plain, collator)
    own = type(collator).torch_mask_tokens is DataCollatorForLanguageModeling.torch_mask_tokens
    if own and "attention_mask" not in given and _is_mask(plain.get("attention_mask"), plain):
        given["attention_mask"] = plain["attention_mask"]
    plain["input_ids"], plain["labels"] = collator.torch_mask_tokens(ids, **given)
    return _with_places(plain, collator)


def _with_places(batch: dict[str, Any], collator: DataCollatorForLanguageModeling) -> Any:
    """The batch with ``label_positions``, where the collator is asked for them."""
    if collator.label_positions:
        batch["label_positions"] = label_places(batch["labels"], collator.label_positions)
    return batch


def _mask_packed(
    ids: Tensor, collator: DataCollatorForLanguageModeling, given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Mask [1, N], where padding may stand behind the rows."""
    count = given.pop("tokens")
    seen, target = collator.torch_mask_tokens(ids[0, :count], **given)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, :count] = target
    ids = ids.clone()
    ids[0, :count] = seen
    return ids, labels


def _is_mask(attention_mask: Any, batch: Mapping[str, Any]) -> bool:
    """The attention mask is that of the batch: one number for each token."""
    ids, own = batch["input_ids"], batch.get("attention_mask")
    return (
        isinstance(attention_mask, Tensor)
        and isinstance(own, Tensor)
        and own.shape == ids.shape == attention_mask.shape
    )


def check_collator(collator: Any) -> None:
    if not isinstance(collator, DataCollatorForLanguageModeling):
        raise TypeError(
            "masking on the device needs a maskft.DataCollatorForLanguageModeling, got "
            f"{type(collator).__name__}"
        )
    if collator.rng == "hf" or not collator.mlm:
        asked = "rng='hf'" if collator.rng == "hf" else "mlm=False"
        raise ValueError(
            f"masking on the device does not go with {asked}: it takes rng='stream' or 'sample'"
        )
