"""Classify texts or pairs of texts by the word that the language model puts in a template."""

from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForTokenClassification

from maskft.prompt import Template
from maskft.tasks.examples import Examples


@dataclass(frozen=True)
class Prompt:
    """Train and use a masked language model with a template.

    Attributes:
        template: from the names of the labels; its fields are "text", and "pair" for pairs.
        labels: the names, by number.
    """

    template: Template
    labels: list[str]
    mask_only = "of_text"  # the words of the template are not masked

    def rows(self, examples: Examples) -> list[dict[str, Any]]:
        """Encode examples, each with the word of its label at the mask."""
        return self.template.rows(
            self._fields(examples),
            [self.labels[label] for label in examples.labels],
            mask_only=self.mask_only,
        )

    def collator(self) -> Any:
        """Make a collator that pads rows and their labels."""
        return DataCollatorForTokenClassification(self.template.tokenizer)

    def predict(self, model: Any, examples: Examples, batch_size: int) -> list[int]:
        """Return the number of the most probable label of each example."""
        numbers = {label: i for i, label in enumerate(self.labels)}
        found = self.template.predict_labels(model, self._fields(examples), batch_size=batch_size)
        return [numbers[str(label)] for label in found]

    def _fields(self, examples: Examples) -> list[dict[str, str]]:
        if examples.pairs is None:
            return [{"text": text} for text in examples.texts]
        pairs = zip(examples.texts, examples.pairs, strict=True)
        return [{"text": text, "pair": pair} for text, pair in pairs]
