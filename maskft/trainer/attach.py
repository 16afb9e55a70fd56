"""The collator in a Trainer: it learns the epoch, and evaluation is deterministic."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from maskft.collate.inputs import MaskInputs
from maskft.collate.randomness import SampleDraws
from maskft.trainer.counting import COUNTED, count_in_trainer
from maskft.trainer.evaluation import EVALUATED, evaluate_in_trainer
from maskft.trainer.on_device import REPLACED, mask_in_trainer
from maskft.trainer.packing import PACKED, pack_in_trainer
from maskft.trainer.resume import Passes, Place, batches_a_turn, batches_are_made_again

_LOADERS = ("get_eval_dataloader", "get_test_dataloader")


class MaskingCallback(TrainerCallback):
    """Tell a collator the epoch and the step at the beginning of each epoch, a resumed one too.

    Over a dataset without length an epoch is a pass over it. ``attach`` has Trainer resume within a
    pass, which this callback alone does not (``maskft.trainer.resume``).

    Args:
        collator: whatever has ``set_epoch``, and ``set_progress`` if its rate follows a schedule.
            Workers see the change, persistent ones too.
        mask_on_device: batches are masked as they reach the model, not when they are made.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling, MaskingCallback
        >>> collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
        >>> trainer.add_callback(MaskingCallback(collator))
    """

    def __init__(self, collator: SampleDraws | MaskInputs, *, mask_on_device: bool = False) -> None:
        if not hasattr(collator, "set_epoch"):
            raise TypeError(
                "MaskingCallback needs a collator with set_epoch, such as "
                f"maskft.DataCollatorForLanguageModeling, got {type(collator).__name__}"
            )
        self.collator, self.mask_on_device = collator, mask_on_device
        self.passes = Passes()
        self._place = Place()
        self._resumed = self._lengthless = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader = kwargs.get("train_dataloader")
        self._place = Place.of(state, args, loader)
        self._resumed = state.global_step > 0
        self._lengthless = not has_length(loader)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader, place = kwargs.get("train_dataloader"), self._place
        if self._resumed and self._lengthless:
            self.passes.begin(loader, place)
        self.collator.set_epoch(place.epoch)
        if not hasattr(self.collator, "set_progress"):
            return
        step, turn = state.global_step, 1
        if not self.mask_on_device:
            turn = batches_a_turn(loader)
            if batches_are_made_again(loader):
                step -= place.batches // args.gradient_accumulation_steps
        self.collator.set_progress(
            step,
            max(state.max_steps, 1),
            epoch=place.epoch,
            epochs=max(state.num_train_epochs, 1),
            batches_a_step=args.gradient_accumulation_steps * turn,
        )

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._place.batches += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._place.batches += 1
        if self._lengthless:
            self._place.save(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._place = Place(self._place.epoch + 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.passes.end()


def attach(
    trainer: Trainer, *, mask_on_device: bool = False, packing: bool | int = False
) -> Trainer:
    """Give a Trainer's collator its epochs, and fixed masks to evaluation and prediction.

    ``maskft.MaskInputs`` does not mask evaluation and prediction at all.

    Acts on this one object, which it returns; ``detach`` undoes it. Evaluation is then
    deterministic, and ``eval_loss`` is the mean over all labelled tokens, whatever the batch size
    (Trainer's own is the mean of the batches' means). The columns that the collator reads (sample
    ids, entities, weights of words...) are kept where Trainer would drop them
    (``remove_unused_columns``).

    A run resumed from a checkpoint goes on with the batches, masks and rates of the whole run; over
    a dataset without length too, which Trainer alone resumes in its first pass only. Such a dataset
    must give the same rows in the same order again (that of its ``set_epoch``, if it has one), and
    the rows before the place are read again. rng="stream" draws new masks.

    With weighted labels, as those of strategy="diffusion", the loss of an update is divided by the
    sum of ``num_items`` over its batches and ranks, and the model must be one of
    ``fuse_loss``: others ignore the weights, which is an error when training begins.

    Args:
        trainer: one whose data_collator is maskft's.
        mask_on_device: the loader only pads, to int32, and training batches are masked on the
            model's device, before Trainer counts their labels: the same masks with rng="sample",
            by Triton on a GPU and Numba on the CPU. Evaluation is still masked in the loader.
        packing: training batches are packed instead of padded, with at most this many tokens and
            the same masks (docs/packing.md); True: as many as the padded batch may have,
            ``per_device_train_batch_size`` times the longest row. A model that cannot keep packed
            rows apart gets the same rows padded, with a warning. Evaluation is still padded.

    Raises:
        TypeError: no Trainer, or its collator is not maskft's; packing that is no bool or int, or
            with a dataset without length.
        ValueError: the trainer is attached already; mask_on_device with rng="hf" or mlm=False;
            packing below 1, or with rng="hf".

    Examples:
        >>> from maskft import attach
        >>> attach(trainer) is trainer
        True
    """
    _check_trainer("attach", trainer)
    collator = trainer.data_collator
    if not isinstance(collator, (SampleDraws, MaskInputs)):
        raise TypeError(
            "attach needs a Trainer whose data_collator is one of maskft's, such as "
            "maskft.DataCollatorForLanguageModeling or maskft.MaskInputs around a collator of "
            f"yours, got {type(collator).__name__}"
        )
    if any(name in vars(trainer) for name in _LOADERS):
        raise ValueError("this trainer is attached already; detach(trainer) undoes it")
    try:
        if packing is not False:
            pack_in_trainer(trainer, packing)
        if mask_on_device:
            mask_in_trainer(trainer)
    except (TypeError, ValueError):
        detach(trainer)
        raise
    callback = MaskingCallback(collator, mask_on_device=mask_on_device)
    trainer.add_callback(callback)
    trainer.get_batch_samples = _from_their_places(trainer.get_batch_samples, callback.passes)
    for name in _LOADERS:
        setattr(trainer, name, _with_fixed_masks(trainer, getattr(trainer, name)))
    count_in_trainer(trainer)
    evaluate_in_trainer(trainer)
    names = collator.required_columns()
    names += [name for name in collator.optional_columns() if name not in names]
    if names:
        trainer._set_signature_columns_if_needed()
        trainer._signature_columns += [n for n in names if n not in trainer._signature_columns]
    return trainer


def detach(trainer: Trainer) -> Trainer:
    """Undo ``attach``; a trainer that is not attached is left as it is.

    Examples:
        >>> from maskft import attach, detach
        >>> detach(attach(trainer)) is trainer
        True
    """
    _check_trainer("detach", trainer)
    trainer.remove_callback(MaskingCallback)
    for name in (*_LOADERS, *COUNTED, *EVALUATED, *REPLACED, *PACKED):
        vars(trainer).pop(name, None)
    trainer._signature_columns = None  # Trainer finds them again
    return trainer


def _check_trainer(function: str, trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(f"{function} needs a transformers.Trainer, got {type(trainer).__name__}")


def _from_their_places(fetch: Callable[..., Any], passes: Passes) -> Callable[..., Any]:
    """Have ``fetch`` take the batches of an update from where a resumed pass continues."""

    @wraps(fetch)
    def get_batch_samples(epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        return fetch(passes.batches(epoch_iterator), *args, **kwargs)

    return get_batch_samples


def _with_fixed_masks(trainer: Trainer, build: Callable[..., Any]) -> Callable[..., Any]:
    """Have ``build`` make a loader with the evaluation copy of the trainer's collator."""

    @wraps(build)
    def get_dataloader(*args: Any, **kwargs: Any) -> Any:
        kept = trainer.data_collator
        trainer.data_collator = kept.for_evaluation()
        try:
            return build(*args, **kwargs)
        finally:
            trainer.data_collator = kept

    return get_dataloader
