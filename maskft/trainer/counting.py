"""What the loss of an update is divided by, where its batches say so.

``maskft.attach`` calls this and ``maskft.detach`` undoes it.
"""

from collections.abc import MutableMapping, Sequence
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import Trainer

COUNTED = ("_get_num_items_in_batch",)  # of a trainer


def count_in_trainer(trainer: Trainer) -> None:
    """Have a Trainer sum the ``num_items`` of batches that have it, not their labels.

    Over the batches of an update and over ranks, as Trainer sums labels. The sum takes the place
    of ``num_items``: a fused model refuses a batch with both. Batches with
    ``label_weights`` are refused for a model that would ignore them.
    """
    count = trainer._get_num_items_in_batch

    @wraps(count)
    def get_num_items_in_batch(batches: Sequence[MutableMapping[str, Any]], device: Any) -> Any:
        first: Any = batches[0] if batches else {}
        ours = [name for name in ("label_weights", "num_items") if name in first]
        if ours and not is_fused(trainer.model):
            raise ValueError(
                f"the batches have {' and '.join(ours)}, which {type(trainer.model).__name__} "
                "ignores: call maskft.fuse_loss(model) before training"
            )
        if "num_items" in first:
            batches = [_as_labels(batch.pop("num_items")) for batch in batches]
        return count(batches, device)

    trainer._get_num_items_in_batch = get_num_items_in_batch


def is_fused(model: Any) -> bool:
    """Return whether a model, wrapped or not, computes its loss by ``fuse_loss``."""
    return any("_fused_loss" in vars(part) for part in model.modules())


def _as_labels(items: Tensor) -> dict[str, Any]:
    counted = _Counted(items)
    return {"labels": counted, "shift_labels": counted}  # Trainer shifts the former, never these


class _Counted:
    """Labels of which Trainer counts as many as there are items.

    It counts ``labels.ne(-100).sum()``, and then knows about ranks and devices.
    """

    def __init__(self, items: Tensor) -> None:
        self.items = items

    def ne(self, ignore_index: int) -> Tensor:
        return self.items
