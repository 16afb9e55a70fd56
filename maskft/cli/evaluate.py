"""Score a model on fixed masks, from the logits of the predicted tokens only."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.insight.logits import evaluating, predicted_logits
from maskkernels import IGNORE_INDEX

_NOT_INPUTS = ("labels", "label_weights", "num_items")


@torch.no_grad()
def masked_scores(
    model: Any, rows: Any, collator: DataCollatorForLanguageModeling, batch_size: int = 16
) -> dict[str, float]:
    """Score a masked language model; every predicted token counts the same.

    Args:
        model: returns ``logits`` [B, T, V]; left in the mode (train or eval) it was in.
        rows: a datasets.Dataset or list of tokenized rows.
        collator: its ``for_evaluation`` masks are used, the same at every call.
        batch_size: rows at a time; the scores do not depend on it but for rounding.

    Returns:
        loss: mean cross-entropy of the predicted tokens, nats. perplexity: its exponential.
        accuracy: share of them whose most probable token is right. tokens: how many there are.
        All NaN with 0 tokens.
    """
    loss, correct, count = 0.0, 0, 0
    for logits, labels, _ in _predictions(model, rows, collator.for_evaluation(), batch_size):
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
        count += labels.numel()
    mean = loss / count if count else math.nan
    return {
        "loss": mean,
        "perplexity": _exp(mean),
        "accuracy": correct / count if count else math.nan,
        "tokens": count,
    }


@torch.no_grad()
def bound_scores(
    model: Any,
    rows: Any,
    collator: DataCollatorForLanguageModeling,
    batch_size: int = 16,
    passes: int = 4,
) -> dict[str, float]:
    """Bound the negative log-likelihood of rows under a masked diffusion model.

    The mean over passes of (sum of the labels' cross-entropies, each divided by its row's rate p) /
    (tokens that may be masked). In pass k each row's time is uniform in (k / passes,
    (k + 1) / passes], drawn for (seed, row) alone, so the result does not depend on the batches but
    for rounding, and two evaluations give the same bits.

    Args:
        model, rows, batch_size: as for ``masked_scores``.
        collator: one with strategy "diffusion"; its ``for_evaluation`` copies are used.
        passes: how often the model goes over the rows.

    Returns:
        bound: nats a token. perplexity_bound: its exponential. accuracy: share of the predicted
        tokens whose most probable token is right, over all passes. tokens: how many may be masked.
        predicted: how many were, over all passes. passes. NaN with 0 tokens.
    """
    total, correct, predicted, tokens = 0.0, 0, 0, 0
    for number in range(passes):
        fixed = collator.for_evaluation(number, passes)
        for logits, labels, batch in _predictions(model, rows, fixed, batch_size):
            weights = batch["label_weights"][batch["label_weights"] != 0].to(logits.device)
            losses = F.cross_entropy(logits, labels, reduction="none")
            total += float((losses.double() * weights).sum())
            correct += int((logits.argmax(-1) == labels).sum())
            predicted += labels.numel()
            tokens += int(batch["num_items"].sum())
    bound = total / tokens if tokens else math.nan
    return {
        "bound": bound,
        "perplexity_bound": _exp(bound),
        "accuracy": correct / predicted if predicted else math.nan,
        "tokens": tokens // passes,
        "predicted": predicted,
        "passes": passes,
    }


def _predictions(
    model: Any, rows: Any, fixed: DataCollatorForLanguageModeling, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Yield (logits [R, V], labels [R], the collator's batch) of the rows, in evaluation mode."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # little padding
    loader = DataLoader(Rows(rows, order), batch_size=batch_size, collate_fn=fixed)
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in loader:
            labels = batch["labels"].to(device)
            predicted = labels != IGNORE_INDEX
            inputs = {k: v.to(device) for k, v in batch.items() if k not in _NOT_INPUTS}
            yield predicted_logits(model, inputs, predicted), labels[predicted], batch


def _exp(mean: float) -> float:
    return math.nan if math.isnan(mean) else math.exp(mean) if mean < 700 else math.inf


class Rows(torch.utils.data.Dataset):
    """``rows`` in another order."""

    def __init__(self, rows: Any, order: Sequence[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Any:
        return self.rows[self.order[i]]
