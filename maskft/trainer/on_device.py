"""Masking on the model's device in a Trainer: its loader only pads."""

from functools import wraps
from typing import Any

from transformers import Trainer

from maskft.collate.unmasked import UnmaskedCollator, check_collator, mask_batch

REPLACED = ("get_train_dataloader", "get_batch_samples")  # of a trainer


def mask_in_trainer(trainer: Trainer) -> None:
    """Have a Trainer's loader only pad, and mask its batches on the model's device.

    They are masked before Trainer counts an update's labels, so ``num_items_in_batch`` is right.
    Evaluation is still masked in the loader. ``maskft.attach`` calls this and ``maskft.detach``
    undoes it.
    """
    collator = trainer.data_collator
    from accelerate.data_loader import DataLoaderDispatcher  # whoever has a Trainer has it

    check_collator(collator)
    build, fetch = trainer.get_train_dataloader, trainer.get_batch_samples

    @wraps(build)
    def get_train_dataloader(*args: Any, **kwargs: Any) -> Any:
        trainer.data_collator = unmasked = UnmaskedCollator(collator)
        try:
            loader = build(*args, **kwargs)
        finally:
            trainer.data_collator = collator
        unmasked.dispatched = isinstance(loader, DataLoaderDispatcher)
        return loader

    @wraps(fetch)
    def get_batch_samples(epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        def mask(batch: Any) -> dict[str, Any]:
            return mask_batch(trainer._prepare_inputs(batch), collator)

        return fetch(map(mask, epoch_iterator), *args, **kwargs)

    for name, method in zip(REPLACED, (get_train_dataloader, get_batch_samples), strict=True):
        setattr(trainer, name, method)
