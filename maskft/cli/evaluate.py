"""Score a model on fixed masks, from the logits of the predicted tokens only."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.insight.logits import predicted_logits


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
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # little padding
    loader = DataLoader(
        Rows(rows, order), batch_size=batch_size, collate_fn=collator.for_evaluation()
    )
    device, was_training = next(model.parameters()).device, model.training
    loss, correct, count = 0.0, 0, 0
    model.eval()
    for batch in loader:
        labels = batch.pop("labels").to(device)
        predicted = labels != -100
        inputs = {k: v.to(device) for k, v in batch.items()}
        logits, labels = predicted_logits(model, inputs, predicted), labels[predicted]
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
        count += labels.numel()
    model.train(was_training)
    mean = loss / count if count else math.nan
    return {
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf if count else math.nan,
        "accuracy": correct / count if count else math.nan,
        "tokens": count,
    }


class Rows(torch.utils.data.Dataset):
    """``rows`` in another order."""

    def __init__(self, rows: Any, order: Sequence[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Any:
        return self.rows[self.order[i]]
