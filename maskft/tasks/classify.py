"""Classify texts or pairs of texts with a head on the encoder."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from maskft.insight.logits import device_of, evaluating
from maskft.tasks.examples import Examples


@dataclass(frozen=True)
class Classify:
    """Train and use a model for sequence classification.

    Attributes:
        tokenizer: of the model.
        max_length: tokens in a row, at most; longer texts are cut.
    """

    tokenizer: Any
    max_length: int
    mask_only = None  # every token but the special ones may be masked

    def rows(self, examples: Examples) -> list[dict[str, Any]]:
        """Encode examples, each with the number of its label."""
        encoded = self.tokenizer(
            examples.texts, examples.pairs, truncation=True, max_length=self.max_length
        )
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        return [
            {**{name: encoded[name][i] for name in names}, "labels": label}
            for i, label in enumerate(examples.labels)
        ]

    def collator(self) -> Any:
        """Make a collator that pads rows."""
        return DataCollatorWithPadding(self.tokenizer)

    def predict(self, model: Any, examples: Examples, batch_size: int) -> list[int]:
        """Return the number of the most probable label of each example."""
        rows = self.rows(examples)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        found = torch.empty(len(rows), dtype=torch.int64)
        pad, device = self.collator(), device_of(model)
        with evaluating(model):
            for begin in range(0, len(order), batch_size):
                places = order[begin : begin + batch_size]
                batch = pad([{k: v for k, v in rows[i].items() if k != "labels"} for i in places])
                found[places] = model(**batch.to(device)).logits.argmax(-1).cpu()
        return found.tolist()
