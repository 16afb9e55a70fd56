"""Packing in a Trainer: training batches are packed, evaluation stays padded.

``maskft.attach(trainer, packing=...)`` calls this and ``maskft.detach`` undoes it.
"""

import dataclasses
import logging
import numbers
import sys
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import has_length, seed_worker

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.collate.unmasked import UnmaskedCollator
from maskft.packing.collator import DataCollatorWithPacking
from maskft.packing.sampler import PackedBatchSampler
from maskkernels.batch import flatten_rows

PACKED = ("_get_dataloader", "_track_num_input_tokens")  # of a trainer
# What Trainer hands on to a DataLoader; a Transformers that does not know one has no such argument.
_LOADER_OPTIONS = (
    "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context",
)  # fmt: skip
_LOG = logging.getLogger(__name__)


def pack_in_trainer(trainer: Trainer, block_size: bool | int) -> None:
    """Have a Trainer train on packed rows, separated in the way that fits its model.

    Their masks are those of the trainer's own collator: they share its epoch and its schedule.

    Args:
        trainer: one whose data_collator masks, and whose training dataset has a length.
        block_size: tokens in a batch, at most; True: ``per_device_train_batch_size`` times the
            longest row, the size of the padded batch.

    Raises:
        TypeError: a collator or a dataset that cannot be packed; a block size that is no int.
        ValueError: a block size below 1; rng="hf" with a model that is packed.
    """
    if not isinstance(block_size, numbers.Integral):
        raise TypeError(
            f"packing must be a bool or a number of tokens, got {type(block_size).__name__} "
            f"{block_size!r}"
        )
    if not isinstance(block_size, bool) and block_size < 1:
        raise ValueError(f"packing must be True or a positive number of tokens, got {block_size}")
    dataset = trainer.train_dataset
    if isinstance(dataset, IterableDataset) or not has_length(dataset):
        raise TypeError(
            f"packing needs a training dataset with a length, got {type(dataset).__name__}: "
            "pack its rows with maskkernels.pack_rows as they come"
        )
    collator = _packing(trainer.data_collator, trainer.model)
    if collator.attention == "padded":
        _LOG.warning(
            "%s cannot keep packed rows apart: its batches hold as many rows as a block, padded",
            type(trainer.model).__name__,
        )
    builds, track = trainer._get_dataloader, trainer._track_num_input_tokens

    @wraps(builds)
    def get_dataloader(
        dataset: Any, description: str, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> Any:
        if not is_training:
            return builds(dataset, description, *args, is_training=is_training, **kwargs)
        return _loader(trainer, collator, dataset, description, block_size)

    @wraps(track)
    def track_num_input_tokens(inputs: Mapping[str, Any]) -> None:
        if collator.attention != "padded":  # its mask has an entry for each pair of tokens
            pad = collator.tokenizer.pad_token_id
            real = inputs["input_ids"].ne(-1 if pad is None else pad)
            inputs = {**inputs, "attention_mask": real}
        track(inputs)

    for name, method in zip(PACKED, (get_dataloader, track_num_input_tokens), strict=True):
        setattr(trainer, name, method)


def _packing(collator: Any, model: Any) -> DataCollatorWithPacking:
    """Return a packing collator with the options, epoch and progress of a padding one."""
    if isinstance(collator, DataCollatorWithPacking):
        return collator
    if type(collator) is not DataCollatorForLanguageModeling:
        raise TypeError(
            "packing needs a maskft.DataCollatorForLanguageModeling or DataCollatorWithPacking, "
            f"got {type(collator).__name__}"
        )
    options = {f.name: getattr(collator, f.name) for f in dataclasses.fields(collator) if f.init}
    options["whole_word_mask"] = False  # the strategy says so, and the shares are what they became
    packing = DataCollatorWithPacking.for_model(model, options.pop("tokenizer"), **options)
    packing.follow(collator)
    return packing


def _loader(
    trainer: Trainer,
    packing: DataCollatorWithPacking,
    dataset: Any,
    description: str,
    block_size: bool | int,
) -> Any:
    """Build the training loader that Trainer would, with blocks for batches."""
    args = trainer.args
    collator: Any = packing
    if isinstance(trainer.data_collator, UnmaskedCollator):  # masked on the device
        collator = UnmaskedCollator(packing, trainer.data_collator.dtype)
    if _is_table(dataset):
        dataset = trainer._remove_unused_columns(dataset, description=description)
    else:
        collator = trainer._get_collator_with_removed_columns(collator, description=description)
    lengths = row_lengths(dataset)
    if block_size is True:
        longest = max(int(lengths.max()) if lengths.numel() else 0, 1)
        block_size = args.per_device_train_batch_size * min(longest, packing.max_length or longest)
    sampler = PackedBatchSampler(
        lengths,
        block_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        overlong="error" if packing.max_length is None else "truncate",
        num_replicas=args.world_size,
        rank=args.process_index,
        drop_last=args.dataloader_drop_last,
    )
    options: dict[str, Any] = {
        name: getattr(args, f"dataloader_{name}", None) for name in _LOADER_OPTIONS
    }
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        worker_init_fn=partial(
            seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
        ),
        **options,
    )
    from accelerate.data_loader import prepare_data_loader  # whoever has a Trainer has it

    # Every rank has its own batches already: nothing is left for Accelerate to deal out.
    return prepare_data_loader(
        loader,
        device=trainer.accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=trainer.accelerator.device_placement,
        non_blocking=trainer.accelerator.non_blocking,
    )


def row_lengths(dataset: Any) -> Tensor:
    """Return int64 [B], the lengths of a dataset's rows, which are mappings or plain ids."""
    if _is_table(dataset) and dataset.format["type"] != "custom":
        table = dataset.select_columns(["input_ids"]).with_format("arrow")[:]
        return flatten_rows(table["input_ids"], name="input_ids").cu_seqlens.diff()
    return torch.tensor([len(_ids(dataset[i])) for i in range(len(dataset))], dtype=torch.int64)


def _is_table(dataset: Any) -> bool:
    """Return whether a dataset is from the library ``datasets``, which is optional."""
    library = sys.modules.get("datasets")  # loaded by whoever made the dataset
    return library is not None and isinstance(dataset, library.Dataset)


def _ids(row: Any) -> Any:
    return row["input_ids"] if isinstance(row, Mapping) else row
