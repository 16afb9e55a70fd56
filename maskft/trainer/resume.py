"""The place of training in its data: saved in the checkpoint, and resumed from.

Trainer counts no passes over a dataset without length. It resumes by throwing away as many batches
as it has trained on, from one pass alone: a run that was interrupted after its first pass begins
the next one again, and a dataset with ``set_epoch`` shuffles as in epochs long over.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerState
from transformers.trainer_utils import has_length

# In the checkpoint's TrainerState, next to the states of callbacks, but no callback's name: Trainer
# would build that callback (restore_callback_states_from_checkpoint), without a collator.
_ENTRY = "maskft"


class Place:
    """Name the pass over the data that training is in, and how far it got.

    Attributes:
        epoch: which pass, from 0.
        batches: batches of this pass that were trained on; an update's gradient is in no
            checkpoint, so ``save`` comes after an optimiser step.
    """

    def __init__(self, epoch: int = 0, batches: int = 0) -> None:
        self.epoch, self.batches = epoch, batches

    @classmethod
    def of(cls, state: TrainerState, args: Any, loader: Any) -> "Place":
        """Return where a run begins or resumes; ``state`` is that at the beginning of training."""
        epoch = int(state.epoch or 0)
        skips = not args.ignore_data_skip
        if has_length(loader):
            updates = max(-(-len(loader) // args.gradient_accumulation_steps), 1)
            done = state.global_step % updates * args.gradient_accumulation_steps
            return cls(epoch, done if skips else 0)
        done = state.global_step * args.gradient_accumulation_steps
        saved = (state.stateful_callbacks or {}).get(_ENTRY, {"epoch": epoch, "batches": done})
        return cls(saved["epoch"], saved["batches"] if skips else 0)

    def save(self, state: TrainerState) -> None:
        """Save it in the state that the next checkpoint holds."""
        state.stateful_callbacks[_ENTRY] = {"epoch": self.epoch, "batches": self.batches}


class Passes:
    """Begin each pass of a resumed run over a dataset without length where it should begin.

    ``begin`` says where the next one should, before Trainer starts on it; ``batches`` is then given
    Trainer's iterator over it, which has not begun, and gives the one to use.
    """

    def __init__(self) -> None:
        self._next: tuple[Any, Place] | None = None
        self._given: Any = None
        self._own: Iterator[Any] | None = None

    def begin(self, loader: Any, place: Place) -> None:
        self._next = loader, Place(place.epoch, place.batches)

    def batches(self, given: Iterator[Any]) -> Iterator[Any]:
        if self._next is not None:
            loader, place = self._next
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(place.epoch)  # Trainer's epochs begin at 0 again
            self._given, self._own = given, itertools.islice(iter(loader), place.batches, None)
            self._next = None
        return given if self._own is None or given is not self._given else self._own

    def end(self) -> None:
        self._next = self._given = self._own = None


def batches_are_made_again(loader: Any) -> bool:
    """Return whether a loader makes the batches that a resumed epoch skips."""
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def batches_a_turn(loader: Any) -> int:
    """Return how many batches the collator makes while each rank gets one.

    One, or those of all ranks where the first rank makes them (Accelerate's ``dispatch_batches``).
    """
    from accelerate.data_loader import DataLoaderDispatcher  # whoever has a Trainer has it

    if not isinstance(loader, DataLoaderDispatcher) or loader.split_batches or loader.submesh_tp:
        return 1
    return loader.state.num_processes
