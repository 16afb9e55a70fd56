"""Trainer glue: the collator learns the epoch, and evaluation sees the same masks every time."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from maskft.device import REPLACED, mask_in_trainer
from maskft.draws import SampleDraws
from maskft.packed_trainer import PACKED, pack_in_trainer

_LOADERS = ("get_eval_dataloader", "get_test_dataloader")


class MaskingCallback(TrainerCallback):
    """Tell a collator the epoch and the step at the beginning of each epoch, a resumed one too.

    Args:
        collator: whatever has ``set_epoch``, and ``set_progress`` if its rate follows a schedule.
            Workers see the change, persistent ones too.
    """

    def __init__(self, collator: SampleDraws) -> None:
        self.collator = collator
        self._epoch = 0
        self._resumed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # state.epoch is a fraction of max_steps for a dataset without length: count from here on.
        self._epoch = int(state.epoch or 0)
        self._resumed = state.global_step > 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.set_epoch(self._epoch)
        step = state.global_step
        loader = kwargs.get("train_dataloader")
        if self._resumed and isinstance(getattr(loader, "dataset", None), IterableDataset):
            step = 0  # batches that were trained on are made again, and thrown away
        if hasattr(self.collator, "set_progress"):
            self.collator.set_progress(
                step,
                max(state.max_steps, 1),
                epoch=self._epoch,
                epochs=max(state.num_train_epochs, 1),
                batches_a_step=args.gradient_accumulation_steps,
            )
        self._epoch += 1
        self._resumed = False


def attach(
    trainer: Trainer, *, mask_on_device: bool = False, packing: bool | int = False
) -> Trainer:
    """Give a Trainer's collator its epochs, and fixed masks to evaluation and prediction.

    Acts on this one object, which it returns; ``detach`` undoes it. Two evaluations of one model
    then agree to the last digit. The columns that the collator reads (sample ids, entities, weights
    of words...) are kept where Trainer would drop them (``remove_unused_columns``).

    Args:
        trainer: one whose data_collator is maskft's.
        mask_on_device: the loader only pads, to int32, and training batches are masked on the
            model's device, before Trainer counts their labels: the same masks with rng="sample",
            by Triton on a GPU and Numba on the CPU. Evaluation is masked in the loader as ever.
        packing: training batches are rows end to end instead of padded, so many tokens at most,
            with the same masks (docs/packing.md); True: as many as the padded batch may have,
            ``per_device_train_batch_size`` times the longest row. A model that cannot keep packed
            rows apart gets the same rows padded, with a warning. Evaluation is padded as ever.

    Raises:
        TypeError: the trainer's collator is not maskft's; packing with a dataset without length.
        ValueError: the trainer is attached already; mask_on_device with rng="hf" or mlm=False;
            packing below 1, or with rng="hf".
    """
    collator = trainer.data_collator
    if not isinstance(collator, SampleDraws):
        raise TypeError(
            "attach needs a Trainer whose data_collator is one of maskft's, such as "
            f"maskft.DataCollatorForLanguageModeling, got {type(collator).__name__}"
        )
    if any(name in vars(trainer) for name in _LOADERS):
        raise ValueError("this trainer is attached already; detach(trainer) undoes it")
    if packing is not False:
        pack_in_trainer(trainer, packing)
    if mask_on_device:
        mask_in_trainer(trainer)
    trainer.add_callback(MaskingCallback(collator))
    for name in _LOADERS:
        setattr(trainer, name, _with_fixed_masks(trainer, getattr(trainer, name)))
    names = collator.columns_read()
    names += [name for name in collator.columns_welcome() if name not in names]
    if names:
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [n for n in names if n not in trainer._signature_columns]
    return trainer


def detach(trainer: Trainer) -> Trainer:
    """Undo ``attach``; a trainer that is not attached stays as it is."""
    trainer.remove_callback(MaskingCallback)
    for name in (*_LOADERS, *REPLACED, *PACKED):
        vars(trainer).pop(name, None)
    trainer._signature_columns = None  # Trainer works them out anew
    return trainer


def _with_fixed_masks(trainer: Trainer, build: Callable[..., Any]) -> Callable[..., Any]:
    """``build`` a loader while the trainer's collator is its evaluation copy."""

    @wraps(build)
    def get_dataloader(*args: Any, **kwargs: Any) -> Any:
        kept = trainer.data_collator
        trainer.data_collator = kept.for_evaluation()
        try:
            return build(*args, **kwargs)
        finally:
            trainer.data_collator = kept

    return get_dataloader
