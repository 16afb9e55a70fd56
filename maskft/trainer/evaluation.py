"""Evaluation in a Trainer: a loss over labelled tokens, and logits only where they are used.

``maskft.attach`` calls this and ``maskft.detach`` undoes it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from maskft.collate.labels import IGNORE_INDEX

EVALUATED = ("prediction_step", "evaluation_loop")  # of a trainer


def evaluate_in_trainer(trainer: Trainer) -> None:
    """Have a Trainer's evaluation loss be the mean over labelled tokens, and spare it logits.

    By their ``label_weights``, where a fused model gets some. Trainer's own is the mean of the
    batches' means, so that it depends on the batch size, and a token counts the more the fewer
    labels its batch has. Batches without labels count for nothing; where a loss has none to count
    (start_positions and end_positions), Trainer's own is kept. Ranks add up; rows that accelerate
    repeats to fill the last batch count again.

    A fused model returns logits where Trainer hands predictions on (``compute_metrics``,
    ``predict``), whatever its ``logits`` option, and computes none where it does not.
    """
    step, loop = trainer.prediction_step, trainer.evaluation_loop
    seen: list[tuple[Tensor, Tensor]] = []  # each batch's mean, and how many tokens it is of
    uncounted: list[bool] = []  # batches with a loss and no labels to count, as of start_positions

    @wraps(step)
    def prediction_step(
        model: Any, inputs: Mapping[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        parts = trainer.model.modules()
        forward = next((f for m in parts if (f := vars(m).get("_fused_loss"))), None)
        count = _predicted(trainer, forward, inputs)
        with _means(trainer), _logits(forward, not prediction_loss_only):
            found = step(model, inputs, prediction_loss_only, *args, **kwargs)
        if found[0] is not None:
            if count is None:
                uncounted.append(True)
            else:
                seen.append((found[0], count))
        return found

    @wraps(loop)
    def evaluation_loop(
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> Any:
        seen.clear()
        uncounted.clear()
        found = loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix, **kwargs
        )
        name = f"{metric_key_prefix}_loss"
        if name in found.metrics and not uncounted:
            found.metrics[name] = _mean(trainer, seen)
        seen.clear()
        return found

    for name, method in zip(EVALUATED, (prediction_step, evaluation_loop), strict=True):
        setattr(trainer, name, method)


def _mean(trainer: Trainer, seen: list[tuple[Tensor, Tensor]]) -> float:
    """Return the mean of all ranks' tokens; NaN where there is none."""
    total, tokens = 0.0, 0.0
    if seen:
        losses = torch.stack([loss.float() for loss, _ in seen]).double().cpu()
        counts = torch.stack([count.to(seen[0][0].device) for _, count in seen]).cpu()
        total = float(torch.where(counts != 0, losses * counts, 0.0).sum())
        tokens = float(counts.sum())
    if trainer.args.world_size > 1:
        sums = torch.tensor([total, tokens], device=trainer.accelerator.device)
        total, tokens = trainer.accelerator.reduce(sums, "sum").tolist()
    return total / tokens if tokens else math.nan


def _predicted(trainer: Trainer, forward: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Count the tokens of a batch that the model predicts, by weight; None without labels.

    A batch that says what its loss is divided by counts for that.
    """
    weights, items = inputs.get("label_weights"), inputs.get("num_items")
    if forward is None and (weights is not None or items is not None):
        raise ValueError(
            f"this batch has {'num_items' if weights is None else 'label_weights'}, which "
            "a model that is not fused ignores: use maskft.fuse_loss(model)"
        )
    if items is not None:
        return items.sum()
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs.get("labels")
        if not isinstance(labels, Tensor):
            return None
        shifts = getattr(trainer, "_loss_shifts_labels", False)
        if shifts if forward is None else forward.head.shift:
            labels = labels[..., 1:]
    labelled = labels != IGNORE_INDEX
    if weights is None:
        return labelled.sum()
    return torch.where(labelled, weights[..., -labels.shape[-1] :].float(), 0.0).sum()


@contextmanager
def _means(trainer: Trainer) -> Iterator[None]:
    """Have losses be the means of their batches, on each rank its own."""
    name = "_get_num_items_in_batch"
    kept = vars(trainer).get(name)
    setattr(trainer, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        delattr(trainer, name)
        if kept is not None:
            setattr(trainer, name, kept)


@contextmanager
def _logits(forward: Any, wanted: bool) -> Iterator[None]:
    """Have a fused model return logits, or none."""
    if forward is not None:
        kept, forward.now.logits = forward.now.logits, wanted
    try:
        yield
    finally:
        if forward is not None:
            forward.now.logits = kept
